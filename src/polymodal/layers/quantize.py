"""Vector quantization: continuous vectors to discrete codes, with a nearest-neighbor or a Gumbel-softmax codebook."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather, all_gather_with_grad


class QuantizerOutput(NamedTuple):
    """Quantized vectors (straight-through), codes, and the codebook and commitment losses."""

    vectors: Float[Tensor, "... dim"]
    codes: Int[Tensor, ...]
    codebook: Float[Tensor, ""]
    commitment: Float[Tensor, ""]


class VectorQuantizer(nn.Module):
    """Vector quantization to the nearest codebook vector (VQ-VAE, van den Oord et al. 2017, equations 1 to 3).

    Vectors and codes are L2-normalized and low-dimensional, which keeps codebook usage high (ViT-VQGAN, Yu et al. 2022,
    section 3.2).
    """

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, codebook_dim), dim=-1))

    def vectors(self, codes: Int[Tensor, ...]) -> Float[Tensor, "... dim"]:
        """Return the unit vectors of codes."""
        return F.normalize(F.embedding(codes, self.codebook), dim=-1)

    def codes(self, x: Float[Tensor, "... dim"]) -> Int[Tensor, ...]:
        """Return the nearest code of each vector by cosine similarity."""
        return (x @ F.normalize(self.codebook, dim=-1).T).argmax(-1)

    def forward(self, x: Float[Tensor, "... dim"]) -> QuantizerOutput:
        """Quantize; losses are MSE of codes to sg(vectors) (codebook), and of vectors to sg(codes) (commitment)."""
        x = F.normalize(x, dim=-1)
        codes = self.codes(x)
        nearest = self.vectors(codes)
        # Straight-through estimator: the gradient of the output is copied to the input.
        passed = x + (nearest - x).detach()
        return QuantizerOutput(passed, codes, F.mse_loss(nearest, x.detach()), F.mse_loss(x, nearest.detach()))


def perplexity(codes: Int[Tensor, ...], count: int) -> float:
    """Return the codebook perplexity: the exponential of the entropy of code frequencies, from 1 to `count`."""
    frequencies = torch.bincount(codes.flatten(), minlength=count).double() / max(codes.numel(), 1)
    return float(torch.special.entr(frequencies).sum().exp())


EPS = 1e-7  # added to probabilities: x log x has no finite gradient at 0


class GumbelQuantizerOutput(NamedTuple):
    """Quantized vectors, codes, and the diversity loss of all processes: 0 when all codes are used equally often."""

    vectors: Float[Tensor, "n dim"]
    codes: Int[Tensor, "n num_codebooks"]
    diversity: Float[Tensor, ""]


class GumbelQuantizer(nn.Module):
    """Product quantization by Gumbel softmax, one code per codebook (wav2vec 2.0, Baevski et al. 2020, section 2).

    The forward pass takes the arg max (hard), the backward pass the softmax at a temperature that decays with every
    training step; there is no noise in evaluation.
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
        """Build the quantizer.

        codebook_dim: total dimension of the output, a multiple of `num_codebooks`. temperature_decay: factor of the
        temperature per step.
        """
        super().__init__()
        if codebook_dim % num_codebooks:
            raise UserError(f"{codebook_dim} channels do not divide into {num_codebooks} codebooks.")
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.max_temperature, self.min_temperature = max_temperature, min_temperature
        self.temperature_decay = temperature_decay
        self.logits = nn.Linear(width, num_codebooks * codebook_size)
        nn.init.normal_(self.logits.weight, std=1.0)  # released code; less collapses to a single code
        nn.init.zeros_(self.logits.bias)
        self.codebook = nn.Parameter(torch.rand(num_codebooks, codebook_size, codebook_dim // num_codebooks))
        self.register_buffer("updates", torch.zeros(()))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """Current temperature of the Gumbel softmax."""
        return (self.max_temperature * self.temperature_decay**self.updates).clamp(min=self.min_temperature)

    def after_step(self, fraction: float) -> None:
        """Count an update, which cools; nothing where the quantizer is frozen."""
        self.updates += self.training

    def forward(self, x: Float[Tensor, "n width"]) -> GumbelQuantizerOutput:
        # One distribution over codes per codebook (equation 1).
        logits = self.logits(x).unflatten(1, (self.num_codebooks, self.codebook_size))
        usage, count = logits.float().softmax(-1).sum(0), x.new_tensor([len(x)], dtype=torch.float32)
        count = all_gather(count).sum()
        probabilities = all_gather_with_grad(usage[None]).sum(0) / count.clamp(min=1)
        # Diversity loss (equation 4), with the perplexity exp(entropy) per codebook as in the released code.
        entropy = -(probabilities * (probabilities + EPS).log()).sum(-1)
        diversity = 1 - entropy.exp().mean() / self.codebook_size
        codes = logits.argmax(-1)
        if self.training:
            chosen = F.gumbel_softmax(logits.float(), float(self.temperature), hard=True).to(x.dtype)
        else:
            chosen = F.one_hot(codes, self.codebook_size).to(x.dtype)
        vectors = torch.einsum("nbc,bcd->nbd", chosen, self.codebook).flatten(1)
        return GumbelQuantizerOutput(vectors, codes, diversity * (count > 0))
