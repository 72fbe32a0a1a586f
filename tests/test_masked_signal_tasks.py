"""The tasks of masked signals and of the specialization of experts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation.tasks.expert_specialization import pointwise_information, specialization_scores
from polymodal.evaluation.tasks.masked_signals import masked_scores
from polymodal.recipes.fusion_encoders import eve

TINY = eve.Recipe.tiny()


@pytest.mark.parametrize("top_ffn", ["moe", "modality", "dense"])
def test_scores_of_masked_signals_and_of_experts(corpus: Corpus, top_ffn: str) -> None:
    recipe = dataclasses.replace(TINY, encoder=dataclasses.replace(TINY.encoder, top_ffn=top_ffn))
    processor = fit_processor(recipe, corpus)
    torch.manual_seed(0)
    reader, model = Reader(corpus, processor), recipe.build(processor).eval()
    scores = {score.name: score for score in masked_scores(model, processor, reader, "test")}
    assert scores["test/masked/mlm_nll"].value == pytest.approx(math.log(len(model.mlm_head.bias)), rel=0.3)
    assert 0 < scores["test/masked/mlm_accuracy"].chance < 1
    assert scores["test/masked/mim_mse"].value > 0.5 * scores["test/masked/mim_mse"].chance
    if top_ffn != "moe":
        assert specialization_scores(model, processor, reader, "test") == []
        return
    for block in model.encoder.blocks[1:]:
        block.moe.modality_embedding.data *= 1e4  # so that the modality alone decides
    (information, load) = specialization_scores(model, processor, reader, "test")
    assert information.value == pytest.approx(1, abs=1e-6)
    assert load.value >= 0.5


def test_information_is_the_mutual_information() -> None:
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2, 0, 0])
    assert float(pointwise_information(a, b).mean()) == pytest.approx(math.log(2))
    assert float(pointwise_information(a, torch.tensor([0, 1, 0, 1])).mean()) == pytest.approx(0)
