"""Weights by name and shape, with which golden/ulip_2.npz was made; see golden/ulip_2.txt."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from polymodal.encoders.points import PointEncoderConfig

GOLDEN = np.load(Path(__file__).parent / "golden" / "ulip_2.npz")
SMALL = PointEncoderConfig(6, 8, 6, 24, 2, 3, encoder_dims=20, encoder_hidden_dims=128, pool_type="cls_max")


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """Weights of a checkpoint by name, as in golden/ulip_2.txt."""
    x = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 1, shape)
    if name.endswith("running_var"):
        x = np.abs(x) + 0.5
    elif name.endswith("num_batches_tracked"):
        x = np.zeros(shape)
    elif len(shape) == 1 and name.endswith("weight"):
        x = 1 + 0.3 * x
    else:
        x = x / np.sqrt(max(np.prod(shape[1:]), 4))
    return torch.tensor(x, dtype=torch.float32)


def checkpoint(kind: str) -> dict[str, torch.Tensor]:
    return {name: filled(name, shape) for name, shape in json.loads(str(GOLDEN["shapes"]))[kind].items()}
