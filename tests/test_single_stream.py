"""Single-stream encoder and its pre-training: outputs and losses of M3P's released code."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polymodal.modalities.text import Tokens
from polymodal.models import single_stream
from polymodal.models.single_stream import (
    LossConfig,
    MaskedRegionTextPairs,
    MaskingConfig,
    RegionTextPairs,
    SingleStreamConfig,
)
from polymodal.objectives.image_text_matching import ITMGroups, itm_group_loss

GOLDEN = np.load(Path(__file__).parent / "golden" / "m3p.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def drawn(name: str, shape: tuple[int, ...], scale: float = 0.3) -> Tensor:
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(scale * numbers.astype(np.float32))


def test_the_released_code_has_the_same_outputs_and_losses() -> None:
    config = SingleStreamConfig(30, 9, 16, 2, 2)
    model = single_stream.SingleStreamPretraining(
        config, 30, 5, 2048, 1600, 2048, MaskingConfig(), LossConfig(), clcm=True
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn(name, tuple(parameter.shape)))
    lengths, labels, classes = golden("lengths"), golden("labels"), golden("classes")
    given, boxes = Tokens(golden("given"), lengths), golden("boxes")
    features = drawn("features", (4, 5, 2048), 1.0).abs()
    masked = MaskedRegionTextPairs(
        given, features.masked_fill(golden("zeroed")[..., None], 0.0), labels != -1, classes != -1
    )
    pairs = RegionTextPairs(Tokens(golden("ids"), lengths), features, boxes, classes.clamp(min=0), features)
    groups = ITMGroups(torch.arange(4).view(2, 2), golden("slots"), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(single_stream.box_features(boxes), golden("locations"), atol=1e-5, rtol=1e-5)
    real = torch.cat([torch.ones(4, 5, dtype=torch.bool), given.mask], dim=1)
    joint = model.encoder(given, masked.regions, boxes)
    torch.testing.assert_close(joint[real], golden("joint")[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encoder(given)[given.mask], golden("alone")[given.mask], atol=1e-5, rtol=1e-5)
    losses = model.masked_losses(pairs, masked, groups)
    for ours, theirs in {"mlm": "t2i_cmlm", "mrc": "t2i_mrm", "mrfr": "t2i_mrfr", "itm": "t2i_itm"}.items():
        torch.testing.assert_close(losses[ours], golden(theirs), atol=1e-5, rtol=1e-5)
    halves = single_stream.join_halves(
        Tokens(golden("ids")[[0, 0, 2, 2]], lengths), Tokens(golden("ids")[[0, 2, 2, 0]], lengths), 6
    )
    assert torch.equal(halves.ids, golden("half"))
    scores = model.match_scores(halves, masked.regions, boxes, clcm=True).view(2, 2)
    torch.testing.assert_close(itm_group_loss(scores, groups, 0.0, 1.0), golden("clcm"), atol=1e-5, rtol=1e-5)
