"""Vectors to discrete codes and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Quantised(NamedTuple):
    """vectors: those of the codes; gradients pass to what was quantised. codebook, commitment: losses."""

    vectors: Float[Tensor, "... dim"]
    codes: Int[Tensor, ...]
    codebook: Float[Tensor, ""]
    commitment: Float[Tensor, ""]


class VectorQuantiser(nn.Module):
    """The nearest of a set of learned vectors (VQ-VAE, van den Oord et al. 2017, equations 1 to 3).

    Vectors and codes are compared on the unit sphere, in few dimensions, which keeps most codes in use (ViT-VQGAN, Yu
    et al. 2022, section 3.2).
    """

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.codebook = nn.Parameter(F.normalize(torch.randn(codes, dim), dim=-1))

    def vectors(self, codes: Int[Tensor, ...]) -> Float[Tensor, "... dim"]:
        """The unit vectors of codes."""
        return F.normalize(F.embedding(codes, self.codebook), dim=-1)

    def codes(self, x: Float[Tensor, "... dim"]) -> Int[Tensor, ...]:
        """The nearest code of each vector, whatever its length."""
        return (x @ F.normalize(self.codebook, dim=-1).T).argmax(-1)

    def forward(self, x: Float[Tensor, "... dim"]) -> Quantised:
        """Losses are mean squared distances: of codes to the vectors, and of vectors to their codes."""
        x = F.normalize(x, dim=-1)
        codes = self.codes(x)
        nearest = self.vectors(codes)
        passed = x + (nearest - x).detach()
        return Quantised(passed, codes, F.mse_loss(nearest, x.detach()), F.mse_loss(x, nearest.detach()))


def perplexity(codes: Int[Tensor, ...], count: int) -> float:
    """How many of `count` codes are in use: the exponential of the entropy of their frequencies, from 1 to `count`."""
    shares = torch.bincount(codes.flatten(), minlength=count).double() / max(codes.numel(), 1)
    return float(torch.special.entr(shares).sum().exp())
