"""Maximum mean discrepancy (MMD, Gretton et al. 2012) between groups of samples (particles)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MIN_DISTANCE = 1e-8  # below it, the gradient of a norm is not defined


def laplace_kernel(
    a: Float[Tensor, "groups n dim"], b: Float[Tensor, "groups m dim"], weight: Float[Tensor, " groups"]
) -> Float[Tensor, "groups n m"]:
    """Return exp(-weight * ||a - b||_2 / dim) for all pairs of a group."""
    distance = (a[:, :, None] - b[:, None, :]).square().sum(-1).clamp(min=MIN_DISTANCE**2).sqrt()
    return torch.exp(-weight[:, None, None] * distance / a.shape[-1])


def laplace_mmd(
    a: Float[Tensor, "groups n dim"], b: Float[Tensor, "groups m dim"], weight: Float[Tensor, " groups"]
) -> Float[Tensor, " groups"]:
    """Return the squared MMD of each group under the Laplace kernel: the biased estimate (V-statistic), at least 0."""
    within = laplace_kernel(a, a, weight).mean((1, 2)) + laplace_kernel(b, b, weight).mean((1, 2))
    return within - 2 * laplace_kernel(a, b, weight).mean((1, 2))
