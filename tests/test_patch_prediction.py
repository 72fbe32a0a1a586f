"""The task of patch regression: its chance level."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation.tasks.patch_prediction import patch_scores
from polymodal.objectives.masked_modeling import normalize_patches
from polymodal.recipes.captioning import aimv2


def test_chance_of_patches_is_the_error_of_their_means(corpus: Corpus) -> None:
    class Means(torch.nn.Module):
        """Predicts the mean of each patch."""

        textured = 0  # patches of each image

        def __init__(self) -> None:
            super().__init__()
            self.anything = torch.nn.Parameter(torch.zeros(1))

        def patch_errors(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            patches = torch.randn(len(batch["image"]), 15, 192)
            patches[:, self.textured :] = 0.3
            predicted = torch.arange(15).expand(len(patches), 15) < 10
            return normalize_patches(patches).square().mean(-1), predicted, patches.var(2) == 0

    processor, method = fit_processor(aimv2.Recipe.tiny(), corpus), Means()
    reader = Reader(corpus, processor)
    flat = {score.name: score for score in patch_scores(method, processor, reader, "test")}
    assert flat.keys() == {"test/patches/mse", "test/patches/flat"}
    assert flat["test/patches/mse"].value == pytest.approx(0, abs=1e-3)
    assert flat["test/patches/mse"].chance == 0
    method.textured = 4
    some = {score.name: score for score in patch_scores(method, processor, reader, "test")}
    for name, chance in (("mse", 0.4), ("mse_without_flat", 1.0)):
        score = some[f"test/patches/{name}"]
        assert score.chance == pytest.approx(chance)
        assert score.value == pytest.approx(chance, rel=0.02)  # 191 / 192, by the unbiased variance
