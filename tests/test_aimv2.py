"""AIMv2: the losses in plain loops, and what may see what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens
from polymodal.objectives.masked_modeling import normalize_patches
from polymodal.recipes.captioning import aimv2
from polymodal.rng import ExampleRNG

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EXAMPLES = [{"image": np.zeros((32, 32, 3), np.uint8)}]


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(aimv2.Recipe.tiny(), corpus)


def batch_of(recipe: aimv2.Recipe, processor: Processor, corpus: Corpus) -> aimv2.AIMv2Batch:
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:8])[1]
    return recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 8))


def test_losses_are_those_of_plain_loops(corpus: Corpus, processor: Processor) -> None:
    recipe = dataclasses.replace(aimv2.Recipe.tiny(), caption_fraction=0.5, lit_fraction=0.0)
    torch.manual_seed(0)
    model, batch = recipe.build(processor), batch_of(recipe, processor, corpus)
    assert 0 < batch["captioned"].sum() < 8
    errors, nats, patches = [], [], model.image_encoder.patch_embedding.in_features
    for row in range(8):
        image, m, count = batch["image"][row : row + 1], int(batch["prefix"][row]), int(batch["text"].lengths[row])
        assert 1 <= m <= 15
        features = model.image_encoder(image, torch.tensor([m]))[0].values[0]
        words = batch["text"].ids[row, 1:count]  # without the start token
        decoder = model.decoder
        x = torch.cat([decoder.image_projection(features), decoder.token_embedding(words)])[None]
        states = decoder.transformer(x, torch.arange(x.shape[1])[None], torch.ones(1, x.shape[1], dtype=torch.long))[0]
        for i in range(m, 16):  # from 0: the patch behind the prefix is the first
            pixels = image[0, :, i // 4 * 8 :, i % 4 * 8 :][:, :8, :8].reshape(patches)
            errors.append((decoder.pixel_head(states[i - 1]) - normalize_patches(pixels)).square().mean())
        if batch["captioned"][row]:
            nats += [-decoder.text_head(states[15 + t]).log_softmax(-1)[word] for t, word in enumerate(words)]
    losses, counts = model.losses(batch), model.loss_counts(batch)
    torch.testing.assert_close(losses["image"], 0.4 * torch.stack(errors).mean(), **CLOSE)
    torch.testing.assert_close(losses["text"], torch.stack(nats).mean(), **CLOSE)
    assert (int(counts["image"]), int(counts["text"])) == (len(errors), len(nats))


def test_nothing_before_a_changed_patch_sees_it_and_text_never_flows_back(corpus: Corpus, processor: Processor) -> None:
    recipe = dataclasses.replace(aimv2.Recipe.tiny(), lit_fraction=0.0)
    model, images = recipe.build(processor), torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 16:24, 8:16] += 1  # patch 9 from 0
    text = [Tokens(torch.tensor([ids]), torch.tensor([3])) for ids in ([5, 6, 7], [8, 9, 10])]
    prefix = torch.tensor([4])
    first, other = (model.image_encoder(one, prefix)[0] for one in (images, changed))
    torch.testing.assert_close(first.values[:, :9], other.values[:, :9])
    assert not torch.allclose(first.values[:, 9], other.values[:, 9])
    causal = model.image_encoder(images, torch.tensor([1]))[0]
    assert not torch.allclose(first.values[:, 0], causal.values[:, 0])
    states = [
        model.decoder(features, words) for features, words in ((first, text[0]), (other, text[0]), (first, text[1]))
    ]
    torch.testing.assert_close(states[0].image[:, :9], states[1].image[:, :9])
    torch.testing.assert_close(states[0].image, states[2].image)
    assert not torch.allclose(states[0].text[:, 0], states[1].text[:, 0])


def test_what_the_stages_train_follows_from_objective_and_fraction(processor: Processor) -> None:
    tiny = aimv2.Recipe.tiny()
    kinds = {
        aimv2.AIMv2LiT: tiny,
        aimv2.AIMv2: dataclasses.replace(tiny, lit_fraction=0.0),
        aimv2.ContrastiveEncoder: dataclasses.replace(tiny, objective="contrastive"),
    }
    for kind, recipe in kinds.items():
        assert type(recipe.build(processor)) is kind
    for kind, lengths in (("bidirectional", 16), ("causal", 1)):
        recipe = dataclasses.replace(tiny, attention=kind)
        batch = recipe.training_batch(EXAMPLES, processor, ExampleRNG.of(0, 0, 1))
        assert batch["prefix"].tolist() == [lengths]
        assert not batch["captioned"].any()  # an image without a caption


def test_what_predicts_nothing_is_refused() -> None:
    for wrong in ({"attention": "bidirectional"}, {"image_loss_weight": 0.0}):
        with pytest.raises(UserError, match="text-loss-weight above 0"):
            dataclasses.replace(aimv2.Recipe.tiny(), text_loss_weight=0.0, **wrong)
