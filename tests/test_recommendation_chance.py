"""Chance levels of recommendation, where a user has fewer candidates than are ranked."""

from __future__ import annotations

import numpy as np
import pytest

from polymodal.evaluation.tasks.recommendation import ranking_scores


def test_chance_is_one_where_all_candidates_are_ranked():
    given, held_out = [np.arange(6)], [np.array([6, 7])]
    scores = {score.name: score for score in ranking_scores("test", np.arange(8.0)[None], given, held_out)}
    assert scores["test/Recall@10"].chance == pytest.approx(1)
    assert scores["test/NDCG@10"].chance == pytest.approx(1)
