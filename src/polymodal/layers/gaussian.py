"""Probabilistic embeddings: diagonal Gaussians in place of points, and noise that belongs to an example."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class DiagonalGaussian(NamedTuple):
    """Normal distributions with independent dimensions, such as one a token."""

    mean: Float[Tensor, "*shape dim"]
    log_sigma: Float[Tensor, "*shape dim"]  # logarithm of the standard deviation

    @property
    def sigma(self) -> Float[Tensor, "*shape dim"]:
        return self.log_sigma.exp()

    def select(self, index: object) -> DiagonalGaussian:
        """Return those at an index or mask of the first dimensions, such as `(slice(None), 0)` for first tokens."""
        return DiagonalGaussian(self.mean[index], self.log_sigma[index])  # type: ignore[index]

    def copies(self, noise: Float[Tensor, "samples *shape dim"]) -> Float[Tensor, "copies *shape dim"]:
        """Return the mean, and a sample for each entry of standard normal noise (reparameterization); copy first, so
        that entry i of each copy is of Gaussian i."""
        return torch.cat([self.mean[None], self.mean + self.sigma * noise])

    def entropy(self) -> Float[Tensor, "*shape"]:
        """Return the differential entropy in nats."""
        dim = self.mean.shape[-1]
        return dim / 2 * (math.log(2 * math.pi) + 1) + self.log_sigma.sum(-1)

    @classmethod
    def cat(cls, parts: Iterable[DiagonalGaussian]) -> DiagonalGaussian:
        """Concatenate along the first dimension."""
        means, log_sigmas = zip(*parts, strict=True)
        return cls(torch.cat(means), torch.cat(log_sigmas))


def example_noise(
    seeds: Int[Tensor, " batch"], counts: Int[Tensor, " batch"], samples: int, dim: int, stream: int = 0
) -> Float[Tensor, "samples total dim"]:
    """Return standard normal noise for `counts` vectors of each example, example after example.

    An example's noise depends on its seed and count alone: neither on padding, nor on the rest of the batch. seeds: not
    negative. stream: another number gives other noise for the same seeds.
    """
    generator, parts = torch.Generator(seeds.device), [torch.empty(samples, 0, dim, device=seeds.device)]
    for seed, count in zip(seeds.tolist(), counts.tolist(), strict=True) if samples else ():
        generator.manual_seed((seed + stream) % 2**63)
        parts.append(torch.randn(samples, count, dim, generator=generator, device=seeds.device))
    return torch.cat(parts, dim=1) if samples else parts[0].new_empty(0, int(counts.sum()), dim)
