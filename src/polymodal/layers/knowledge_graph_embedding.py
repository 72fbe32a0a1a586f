"""Scorers of knowledge-graph embeddings: how likely each node is the tail of a head and a relation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError

ScorerName = Literal["transe", "distmult", "conve"]


class TransE(nn.Module):
    """-||h + r - t||_p (Bordes et al. 2013, equation 1)."""

    def __init__(self, p: float = 2.0):
        super().__init__()
        self.p = p

    def forward(
        self, head: Float[Tensor, "batch dim"], relation: Float[Tensor, "batch dim"], tails: Float[Tensor, "nodes dim"]
    ) -> Float[Tensor, "batch nodes"]:
        return -torch.cdist(head + relation, tails, self.p, compute_mode="donot_use_mm_for_euclid_dist")


class DistMult(nn.Module):
    """<h, r, t> (Yang et al. 2015, equation 2 with a diagonal matrix)."""

    def forward(
        self, head: Float[Tensor, "batch dim"], relation: Float[Tensor, "batch dim"], tails: Float[Tensor, "nodes dim"]
    ) -> Float[Tensor, "batch nodes"]:
        return (head * relation) @ tails.T


class ConvE(nn.Module):
    """f(vec(f([h; r] * w)) W) t (Dettmers et al. 2018, equation 2), f = ReLU, without batch norm and dropout.

    Head and relation are reshaped to height x width and stacked.
    """

    def __init__(self, dim: int, height: int, channels: int = 32, kernel: int = 3):
        """height: divides dim. Raises UserError where it does not, or leaves less than the kernel."""
        super().__init__()
        if dim % height or 2 * height < kernel or dim // height < kernel:
            raise UserError(
                f"ConvE reshapes {dim} dimensions to two rectangles of at least {kernel} px; take a multiple of 4."
            )
        self.height, self.width = height, dim // height
        self.conv = nn.Conv2d(1, channels, kernel)
        self.fc = nn.Linear(channels * (2 * height - kernel + 1) * (self.width - kernel + 1), dim)

    def forward(
        self, head: Float[Tensor, "batch dim"], relation: Float[Tensor, "batch dim"], tails: Float[Tensor, "nodes dim"]
    ) -> Float[Tensor, "batch nodes"]:
        shape = (-1, 1, self.height, self.width)
        stacked = torch.cat([head.view(shape), relation.view(shape)], 2)
        return F.relu(self.fc(F.relu(self.conv(stacked)).flatten(1))) @ tails.T


def scorer(name: ScorerName, dim: int) -> nn.Module:
    """Return a scorer for embeddings of a dimension; ConvE's rectangles are as near to squares as possible."""
    if name == "conve":
        return ConvE(dim, max(side for side in range(1, math.isqrt(dim) + 1) if dim % side == 0))
    return TransE() if name == "transe" else DistMult()
