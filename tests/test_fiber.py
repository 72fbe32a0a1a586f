"""FIBER: the released backbones, losses of coarse pre-training, and the traps of fusion in the backbone."""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.swin import SwinEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens
from polymodal.models.fused_pretraining import FusedPretraining
from polymodal.models.fusion_in_backbone import FusionInBackbone, RobertaConfig
from polymodal.recipes.grounding import fiber
from polymodal.rng import ExampleRNG

GOLDEN = {name: torch.from_numpy(a) for name, a in np.load(Path(__file__).parent / "golden/fiber.npz").items()}
TINY = fiber.Recipe.tiny()


def weights(name: str, *shape: int) -> torch.Tensor:
    return 0.3 * torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


def test_coarse_losses_are_those_of_the_released_code() -> None:
    image = SwinEncoderConfig(64, 4, 8, (2, 2, 18, 2), (1, 2, 2, 4), 2)
    model = FusedPretraining(image, RobertaConfig(30, 12, 12, 12, 3), 30, 16, 6, 5).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit_scale"):
                parameter.copy_(weights(name, *parameter.shape))
    pixels, text = weights("image", 3, 3, 64, 64), Tokens(GOLDEN["ids"], GOLDEN["lengths"])
    x, lower = model.backbone.lower_image(pixels)[0], model.backbone.lower_text(text)
    words, pooled = model.fuse(x, *lower)
    assert torch.allclose(words[text.mask], GOLDEN["fused_text"][text.mask], atol=1e-5)
    assert torch.allclose(pooled, GOLDEN["fused_cls"], atol=1e-5)
    for name, value in (("image", pixels), ("text", text)):
        assert torch.allclose(model.encode_modality(name, value), GOLDEN[f"{name}_embedding"], atol=1e-5)
    group, queue = torch.arange(3.0), model.queue
    queue.enqueue(
        GOLDEN["queue_image"],
        GOLDEN["queue_text"],
        torch.zeros(5, 3, 64, 64),
        torch.ones(5, 13),
        torch.arange(10.0, 15.0),
    )
    batch = {"image": pixels, "text": text, "group": group, "uniform": torch.rand(3, 2)}
    masked = {"mlm_text": Tokens(GOLDEN["mlm_ids"], text.lengths), "masked_tokens": GOLDEN["masked"]}
    losses = model.pair_losses({**batch, **masked})
    assert float(losses["itc"]) == pytest.approx(float(GOLDEN["itc"]), rel=1e-5)
    assert float(losses["mlm"]) == pytest.approx(float(GOLDEN["mlm"]), rel=1e-5)
    order = torch.tensor([1, 2, 0])
    swapped = Tokens(text.ids[order], text.lengths[order])
    itm = model.matching_loss(x, *lower, pixels[order], swapped, torch.ones(6, dtype=torch.bool))
    assert float(itm) == pytest.approx(float(GOLDEN["itm"]), rel=1e-5)


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


def test_the_image_feature_of_itc_does_not_depend_on_the_text(processor: Processor) -> None:
    model = dataclasses.replace(TINY, alpha_init=1.0).build(processor).eval()
    pixels, captions = torch.randn(2, 3, 32, 32), processor.text(["a red disk", "a blue bar"])
    pair = model.embed({"image": pixels, "text": captions})
    assert torch.equal(pair["image"], model.embed({"image": pixels})["image"])
    logits = model.itm_logits({"image": pixels, "text": captions})
    x, lower = model.backbone.lower_image(model.resized(pixels))[0], model.backbone.lower_text(captions)
    negative, positive = model.itm_head(model.fuse(x, *lower)[1]).unbind(1)
    assert torch.allclose(logits.diagonal(), positive - negative, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


def test_the_queue_begins_empty_and_negatives_are_never_of_an_equal_caption(
    processor: Processor, corpus: Corpus
) -> None:
    torch.manual_seed(0)
    model = TINY.build(processor).train()
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:4]]
    batch = TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    assert len(model.queue.images) == 0
    losses = model.losses(batch)
    assert len(model.queue.images) == 0
    model.after_step()
    assert len(model.queue.images) == 4
    assert torch.allclose(model.queue.image(torch.arange(4)), model.resized(batch["image"]))
    # The queue repeats the batch: every candidate is there twice, and is a positive of its equal.
    again = model.eval().losses(batch)
    assert float(again["itc"].detach()) == pytest.approx(float(losses["itc"].detach()) + math.log(2), rel=1e-4)
    alone = model.losses(batch | {"group": torch.zeros(4, dtype=torch.float64)})
    assert all(loss.isfinite() for loss in alone.values())


def test_blocks_on_top_begin_as_large_as_those_in_the_backbones() -> None:
    """Else the arm that fuses on top has attention that hardly adds anything."""
    top = FusedPretraining(SwinEncoderConfig(16, 2, 8, (1, 2), (1, 2), 4), RobertaConfig(30, 8, 12, 3, 3), 30, 16, 2, 0,
                           "top", 48).top  # fmt: skip
    assert top is not None
    stds = [weight.std().item() for name, weight in top.named_parameters() if name.endswith("out.weight")]
    assert stds == pytest.approx([0.5 / 48**0.5] * len(stds), rel=0.15)
    scales = fiber.Recipe(head_lr_scale=2.0).stages()[0].lr_scales
    assert next(iter(scales.items())) == ("backbone.*.alpha", 40.0), "the first pattern that fits counts"
    assert list(fiber.Recipe.paper().stages()[0].lr_scales.values()) == [5.0] * len(scales)


def test_stages_and_settings_that_do_not_fit(corpus: Corpus) -> None:
    assert [stage.name for stage in TINY.stages()] == ["coarse", "fine", "vqa"]
    plain = dataclasses.replace(corpus, columns={n: c for n, c in corpus.columns.items() if n in ("image", "text")})
    with pytest.raises(UserError, match="write --coarse-fraction 1"):
        fit_processor(TINY, plain)
    fit_processor(dataclasses.replace(TINY, coarse_fraction=1.0, vqa_fraction=0.0), plain)
    with pytest.raises(UserError, match="fused blocks are more"):
        FusionInBackbone(TINY.image, TINY.text, 30, 9)


def test_without_a_queue_each_step_compares_its_own_batch(processor: Processor, corpus: Corpus) -> None:
    recipe = dataclasses.replace(TINY, queue_size=0)
    torch.manual_seed(0)
    model = recipe.build(processor).train()
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:4]]
    batch = recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    losses = model.losses(batch)
    model.after_step()
    again = model.losses(batch)
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(
        {name: float(loss.detach()) for name, loss in again.items()}, rel=1e-5
    )
    with torch.no_grad():
        image, text = model.embed(batch).values()
    logits, same = model.logit_scale() * image @ text.T, batch["group"][:, None] == batch["group"]
    expected = [
        -(one.log_softmax(1) * same / same.sum(1, keepdim=True)).sum(1).mean().item() for one in (logits, logits.T)
    ]
    assert float(losses["itc"].detach()) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_fine_pre_training_may_have_a_fraction_of_the_images_with_boxes(processor: Processor, corpus: Corpus) -> None:
    every = TINY.grounded_rows(corpus, processor).tolist()
    some = dataclasses.replace(TINY, box_fraction=0.25).grounded_rows(corpus, processor).tolist()
    assert len(some) == max(round(len(every) / 4), 1) < len(every)
    assert set(some) < set(every)
    assert dataclasses.replace(TINY, box_fraction=0.25).grounded_rows(corpus, processor).tolist() == some
