"""Vectors to discrete codes and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError


class QuantizerOutput(NamedTuple):
    """vectors: those of the codes; gradients pass to what was quantized. codebook, commitment: losses."""

    vectors: Float[Tensor, "... dim"]
    codes: Int[Tensor, ...]
    codebook: Float[Tensor, ""]
    commitment: Float[Tensor, ""]


class VectorQuantizer(nn.Module):
    """The nearest of a set of learned vectors (VQ-VAE, van den Oord et al. 2017, equations 1 to 3).

    Vectors and codes are compared on the unit sphere, in few dimensions, which keeps most codes in use (ViT-VQGAN, Yu
    et al. 2022, section 3.2).
    """

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, codebook_dim), dim=-1))

    def vectors(self, codes: Int[Tensor, ...]) -> Float[Tensor, "... dim"]:
        """The unit vectors of codes."""
        return F.normalize(F.embedding(codes, self.codebook), dim=-1)

    def codes(self, x: Float[Tensor, "... dim"]) -> Int[Tensor, ...]:
        """The nearest code of each vector, whatever its length."""
        return (x @ F.normalize(self.codebook, dim=-1).T).argmax(-1)

    def forward(self, x: Float[Tensor, "... dim"]) -> QuantizerOutput:
        """Losses are mean squared distances: of codes to the vectors, and of vectors to their codes."""
        x = F.normalize(x, dim=-1)
        codes = self.codes(x)
        nearest = self.vectors(codes)
        passed = x + (nearest - x).detach()
        return QuantizerOutput(passed, codes, F.mse_loss(nearest, x.detach()), F.mse_loss(x, nearest.detach()))


def perplexity(codes: Int[Tensor, ...], count: int) -> float:
    """How many of `count` codes are in use: the exponential of the entropy of their frequencies, from 1 to `count`."""
    shares = torch.bincount(codes.flatten(), minlength=count).double() / max(codes.numel(), 1)
    return float(torch.special.entr(shares).sum().exp())


EPS = 1e-7  # added to shares: the entropy of a code that no vector would choose has no finite gradient


class GumbelQuantizerOutput(NamedTuple):
    """What a Gumbel quantizer makes of vectors. diversity: loss, 0 when all codes are chosen alike often."""

    vectors: Float[Tensor, "n dim"]
    codes: Int[Tensor, "n num_codebooks"]
    diversity: Float[Tensor, ""]


class GumbelQuantizer(nn.Module):
    """One code of each codebook, chosen by logits with Gumbel noise (wav2vec 2.0, Baevski et al. 2020, section 2).

    The forward pass takes the largest, the backward pass the softmax at a temperature that falls with every training
    step; without training there is no noise.
    """

    updates: Tensor

    def __init__(
        self,
        width: int,
        num_codebooks: int,
        codebook_size: int,
        codebook_dim: int,
        max_temperature: float = 2.0,
        min_temperature: float = 0.5,
        temperature_decay: float = 0.999995,
    ):
        """codebook_dim: of the vectors, a multiple of `num_codebooks`.

        temperature_decay: factor of the temperature at every step.
        """
        super().__init__()
        if codebook_dim % num_codebooks:
            raise UserError(f"{codebook_dim} channels do not divide into {num_codebooks} codebooks.")
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.max_temperature, self.min_temperature = max_temperature, min_temperature
        self.temperature_decay = temperature_decay
        self.logits = nn.Linear(width, num_codebooks * codebook_size)
        nn.init.normal_(self.logits.weight, std=1.0)  # released code; with less, all vectors choose one code
        nn.init.zeros_(self.logits.bias)
        self.codebook = nn.Parameter(torch.rand(num_codebooks, codebook_size, codebook_dim // num_codebooks))
        self.register_buffer("updates", torch.zeros(()))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """Of the softmax in the backward pass."""
        return (self.max_temperature * self.temperature_decay**self.updates).clamp(min=self.min_temperature)

    def forward(self, x: Float[Tensor, "n width"]) -> GumbelQuantizerOutput:
        logits = self.logits(x).unflatten(1, (self.num_codebooks, self.codebook_size))
        shares = logits.float().softmax(-1).sum(0) / max(len(x), 1)
        entropy = -(shares * (shares + EPS).log()).sum(-1)
        diversity = 1 - entropy.exp().mean() / self.codebook_size
        codes = logits.argmax(-1)
        if self.training:
            chosen = F.gumbel_softmax(logits.float(), float(self.temperature), hard=True).to(x.dtype)
            self.updates += 1
        else:
            chosen = F.one_hot(codes, self.codebook_size).to(x.dtype)
        vectors = torch.einsum("nbc,bcd->nbd", chosen, self.codebook).flatten(1)
        return GumbelQuantizerOutput(vectors, codes, diversity * (len(x) > 0))
