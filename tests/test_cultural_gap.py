"""The cultural gap: accuracy among equally many classes, and intervals over concepts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polymodal.evaluation.cultural_gap import concept_score, gap_score, top_k_among


def test_accuracy_among_fewer_classes_is_the_mean_over_all_choices() -> None:
    classes, ranks = 7, np.array([1, 2, 4, 7])
    for chosen, k in itertools.product((2, 4, 7), (1, 3)):
        by_loop = [
            np.mean([sum(other < rank for other in some) < k for some in
                     itertools.combinations([one for one in range(1, classes + 1) if one != rank], chosen - 1)])
            for rank in ranks
        ]  # fmt: skip
        assert top_k_among(ranks, classes, chosen, k) == pytest.approx(by_loop)


def test_the_interval_of_the_gap_is_that_of_a_bootstrap_over_concepts() -> None:
    rng = np.random.default_rng(0)
    general = concept_score("a", (rng.random(300) < 0.6).astype(float), np.repeat(np.arange(150), 2), 0.1)
    cultural = concept_score("b", (rng.random(90) < 0.3).astype(float), np.arange(90), 0.1)
    gap = gap_score("gap", general, cultural)
    assert gap.value == pytest.approx(general.value - cultural.value)
    parts = [rng.choice(one.clusters, (4000, len(one.clusters))).mean(axis=1) for one in (general, cultural)]
    assert np.std(gap.clusters) / len(gap.clusters) ** 0.5 == pytest.approx(np.std(parts[0] - parts[1]), rel=0.05)
