"""Where a token stands, as a vector."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sine_positions(length: int, width: int, like: Tensor) -> Float[Tensor, "length width"]:
    """Sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5), in type and place of `like`."""
    place = torch.arange(length, device=like.device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10_000) / width))
    return torch.stack([(place * rate).sin(), (place * rate).cos()], dim=-1).flatten(1).to(like.dtype)
