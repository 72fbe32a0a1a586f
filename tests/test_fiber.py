"""FIBER: the released backbones, losses of coarse pre-training, and the traps of fusion in the backbone."""

from __future__ import annotations

import dataclasses
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
from polymodal.models.fused_pretraining import FusedPretraining, packed_text
from polymodal.models.fusion_in_backbone import FusionInBackbone, RobertaConfig
from polymodal.objectives.image_text_matching import ITMPairs, itm_loss
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
    words, pooled = model.fused(pixels, text)
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
    order, packed = torch.tensor([1, 2, 0]), packed_text(text, 12)
    every = torch.ones(3, dtype=torch.bool)
    itm = model._itm_loss(pixels, packed, pixels[order], packed[order], every, every)
    assert float(itm) == pytest.approx(float(GOLDEN["itm"]), rel=1e-5)
