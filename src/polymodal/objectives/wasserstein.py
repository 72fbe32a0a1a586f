"""Losses of diagonal Gaussians: contrast by 2-Wasserstein distance, and a margin of their entropy.

The squared 2-Wasserstein distance of diagonal Gaussians is the squared Euclidean distance of their means plus that of
their sigmas (not of their variances).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.gaussian import DiagonalGaussian
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.reduction import global_mean

RADIUS = 8.0  # of the sphere of `sphere_vectors`, for each square root of a dimension


def coordinates(gaussian: DiagonalGaussian) -> Float[Tensor, "*shape twice_dim"]:
    """Return vectors whose Euclidean distance is the 2-Wasserstein distance: the mean, and sigma - 1."""
    # The distance is the same for any constant; near sigma = 1 this one loses no digits.
    return torch.cat([gaussian.mean, gaussian.log_sigma.expm1()], dim=-1)


def squared_wasserstein2(a: DiagonalGaussian, b: DiagonalGaussian) -> Float[Tensor, "rows columns"]:
    """Return the squared 2-Wasserstein distances of all pairs, by |a|^2 + |b|^2 - 2ab, which never holds their
    differences."""
    x, y = coordinates(a), coordinates(b)
    squares = x.square().sum(-1)[:, None] + y.square().sum(-1)
    return torch.addmm(squares, x, y.T, alpha=-2).clamp(min=0)


def wasserstein_info_nce(
    a: DiagonalGaussian,
    b: DiagonalGaussian,
    logit_scale: Float[Tensor, ""],
    labels: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return symmetric InfoNCE with the logits -logit_scale * W2^2; rows of all processes are candidates.

    MAP's similarity (-W2^2 / 200 + 4) / tau has the same loss at logit_scale = 1 / (200 tau): the softmax does not
    depend on the constant. labels: see `objectives.contrastive.info_nce`.
    """
    x, y = coordinates(a), coordinates(b)
    x_square, y_square = (-one.square().sum(-1, keepdim=True) / 2 for one in (x, y))
    # -|x - y|^2 / 2 as an inner product, so that logits are computed in blocks.
    left = torch.cat([x, x_square, torch.ones_like(x_square)], dim=-1)
    right = torch.cat([y, torch.ones_like(y_square), y_square], dim=-1)
    return info_nce(left, right, 2 * logit_scale, labels=labels)


def sphere_vectors(gaussian: DiagonalGaussian, radius: float = RADIUS) -> Float[Tensor, "*shape dim_lifted"]:
    """Return L2-normalized vectors whose inner products are in the order of 2-Wasserstein distances, for an index.

    Coordinates are lifted to a sphere of R = radius * sqrt(dimensions), which adds (|x|^2 - |y|^2)^2 / (4 R^2) to the
    squared distance of x and y. Coordinates beyond the sphere are brought back to it.
    """
    x = coordinates(gaussian).float()
    x = x / (radius * math.sqrt(x.shape[-1]))
    x = x / x.norm(dim=-1, keepdim=True).clamp(min=1)
    height = (1 - x.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
    return F.normalize(torch.cat([x, height], dim=-1), dim=-1)


def entropy_margin_loss(
    gaussian: DiagonalGaussian, margin: float, mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean of max(0, margin - H), which keeps sigma from collapsing (MAP, section 3.3; PUM, Yang et al.
    2021).

    H = dim / 2 * (ln(2 pi) + 1) + sum(log sigma) / 2, as in the released code; the entropy in nats has the sum without
    the half. mask: False for padding, which does not count.
    """
    dim = gaussian.log_sigma.shape[-1]
    entropy = dim / 2 * (math.log(2 * math.pi) + 1) + gaussian.log_sigma.sum(-1) / 2
    below = (margin - entropy).clamp(min=0)
    below = below.flatten() if mask is None else below[mask]
    return global_mean(below.sum(), len(below))
