"""MedFLIP: soft targets against MedCLIP's code, patch dropping, and what each loss sees."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.recipes.dual_encoders.medflip import EntityBatch, MedFLIP, Recipe, entity_targets
from polymodal.rng import ExampleRNG

GOLDEN = dict(np.load(Path(__file__).parent / "golden/medflip.npz").items())


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def built(corpus: Corpus, batch: str, seed: int = 0, **choices: Any) -> tuple[MedFLIP, EntityBatch]:
    recipe = dataclasses.replace(Recipe.tiny(), **choices)
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    torch.manual_seed(0)
    return recipe.build(processor), getattr(recipe, batch)(examples, processor, ExampleRNG.of(seed, 0, 4))


def test_soft_targets_are_those_of_medclip() -> None:
    model = MedFLIP(dataclasses.replace(Recipe.tiny(), target_scale=1.0, svd_weight=0.0), 50)
    encoded = {name: golden(name) for name in ("image", "text", "image_entities", "text_entities")}
    image, text = (encoded[name].requires_grad_() for name in ("image", "text"))
    loss = model.contrastive_losses(encoded)["contrastive"]
    torch.testing.assert_close(loss, golden("loss"), rtol=1e-5, atol=1e-5)
    for gradient, name in zip(torch.autograd.grad(loss, (image, text)), ("image", "text"), strict=True):
        torch.testing.assert_close(gradient, golden(f"gradient_{name}"), rtol=1e-5, atol=1e-5)
    both = model.contrastive_losses(encoded | {"augmented_text": golden("augmented_text")})["contrastive"]
    torch.testing.assert_close(both, golden("loss_augmented"), rtol=1e-5, atol=1e-5)


def test_what_is_not_known_has_its_own_pair_as_target() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    targets = entity_targets(rows, torch.tensor([[1.0, 0.0], [1.0, -1.0]]), 2.0)
    torch.testing.assert_close(targets, torch.stack([torch.eye(2)[0], torch.tensor([2.0, 4.0]).softmax(0)]))


@pytest.mark.parametrize(("size", "ratio"), [(28, 0.5), (32, 0.75), (28, 0.3)])
def test_as_many_patches_are_kept_as_in_flip_and_others_each_time(size: int, ratio: float, corpus: Corpus) -> None:
    image = dataclasses.replace(Recipe.tiny().image, image_size=size, patch_size=4)
    kept = [built(corpus, "masked_batch", seed, image=image, mask_ratio=ratio)[1]["kept"] for seed in (0, 1)]
    assert kept[0].shape == (4, int((size // 4) ** 2 * (1 - ratio)))
    assert not torch.equal(*kept)
    assert not torch.equal(kept[0][0], kept[0][1])
    assert "kept" not in built(corpus, "training_batch")[1]


def test_losses_are_of_kept_patches_and_no_entities_are_infonce(corpus: Corpus) -> None:
    model, batch = built(corpus, "masked_batch", entity_source="none", second_text=False, svd_weight=0.0)
    dropped = next(n for n in range(4) if n not in batch["kept"][0])
    changed = batch["image"].clone()
    changed[0].unflatten(1, (2, 16)).unflatten(3, (2, 16))[:, dropped // 2, :, dropped % 2] *= torch.linspace(0, 1, 16)
    losses, others = model.losses(batch), model.losses(EntityBatch(**(batch | {"image": changed})))
    torch.testing.assert_close(others["contrastive"], losses["contrastive"])
    assert others["reconstruction"] != losses["reconstruction"]  # its target
    vectors = {name: model.encode(batch)[name] for name in ("image", "text")}
    logits = model.logit_scale() * vectors["image"] @ vectors["text"].T
    ce = [torch.nn.functional.cross_entropy(one, torch.arange(4)) for one in (logits, logits.T)]
    torch.testing.assert_close(losses["contrastive"], sum(ce, torch.zeros(())) / 2)
