"""Abn-BLIP: the released code's losses and gradients, pairs of query and sentence, soft targets, and sampling."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from golden_abn_blip import GOLDEN, released
from polymodal.claims.abn_blip import claim
from polymodal.corpora import Corpus
from polymodal.data.columns.findings import sample_captions
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens
from polymodal.objectives.query_contrastive import presence_targets
from polymodal.recipes.captioning.abn_blip import Recipe, SentenceBatch
from polymodal.rng import ExampleRNG


def test_losses_and_gradients_are_those_of_the_released_code() -> None:
    model, maps = released()
    ids = torch.from_numpy(GOLDEN["ids"])
    text, rows = Tokens(ids, (ids != 0).sum(1)), torch.from_numpy(GOLDEN["rows"])
    batch: Any = {
        "volume": maps,
        "labels": torch.from_numpy(GOLDEN["labels"]).double(),
        "text": text,
        "captioned": rows,
    }
    losses = model.losses(batch)
    for name in ("itc", "cls", "lm"):
        assert losses[name].item() == pytest.approx(GOLDEN[f"loss_{name}"].item(), rel=1e-6), name
    torch.stack([*losses.values()]).sum().backward()
    gradients = {"queries": model.qformer.queries, "classifier": model.classifier.weight}
    for name, weight in gradients.items():
        expected = torch.from_numpy(GOLDEN[f"grad_{name}"]).reshape(weight.shape)
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-8)
    first = model.multi_scale_tokens.scales[0][0].weight.grad
    assert float(first.norm()) == pytest.approx(GOLDEN["grad_layer1"].item(), rel=1e-5)
    targets = presence_targets(*2 * [model.encode_volume(maps)[1].sigmoid()])
    torch.testing.assert_close(targets, torch.from_numpy(GOLDEN["target"]), rtol=1e-5, atol=1e-8)


def test_detached_targets_have_no_gradient(corpus: Corpus) -> None:
    gradients = []
    for detach in (False, True):
        recipe = dataclasses.replace(Recipe.tiny(), detach_targets=detach)
        model, batch = model_and_batch(recipe, corpus)
        losses = model.losses(batch)
        (gradient,) = torch.autograd.grad(losses["itc"], [model.classifier.weight])
        gradients.append(gradient)
    assert not torch.allclose(gradients[0], gradients[1])  # the token of presence moves it in both


def model_and_batch(recipe: Recipe, corpus: Corpus) -> tuple[Any, SentenceBatch]:
    processor = fit_processor(recipe, corpus)
    torch.manual_seed(0)
    model = recipe.build(processor).eval()
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    return model, recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))


def test_each_study_has_its_sentences_in_the_order_of_the_queries(corpus: Corpus) -> None:
    model, batch = model_and_batch(Recipe.tiny(), corpus)
    texts = fit_processor(Recipe.tiny(), corpus).tokenizer.decode(batch["text"])
    for number, (text, present) in enumerate(zip(texts, batch["labels"].flatten().tolist(), strict=True)):
        name = ("red", "green", "blue", "yellow")[number % 4]
        assert name in text
        assert ("no abnormal" in text) != present
    assert len(model.write_findings(batch)) == 4
    assert {len(study) for study in model.write_findings(batch)} == {4}


def test_sampled_captions_are_balanced_and_bear_one_kind_alone() -> None:
    rng, present = np.random.default_rng(0), np.arange(200) % 20 == 0
    rows = sample_captions(present, 4000, rng)
    assert present[rows].mean() == pytest.approx(0.5, abs=0.04)
    assert not present[sample_captions(np.zeros(9, bool), 5, rng)].any()
    assert set(sample_captions(np.ones(3, bool), 50, rng)) == {0, 1, 2}


def test_arms_of_the_claim_have_equal_parameters(corpus: Corpus) -> None:
    counts = []
    for arm in (claim.baseline, claim.treatment):
        arm = dataclasses.replace(arm, volume=Recipe.tiny().volume)
        model = arm.build(fit_processor(arm, corpus))
        counts.append([(name, weight.shape) for name, weight in model.named_parameters()])
    assert counts[0] == counts[1]
    with pytest.raises(UserError, match="two equal first sides"):
        dataclasses.replace(Recipe.paper(), volume=Recipe().volume)
