"""Sparsemax: the projection onto the probability simplex, which gives most entries the weight 0.

Martins and Astudillo 2016, algorithm 1 and equation 10; used in place of a softmax by FDT (Chen et al. 2023).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function


def sparsemax(logits: Float[Tensor, "*shape classes"]) -> Float[Tensor, "*shape classes"]:
    """Return the point of the simplex that is closest to each row; rows sum to 1.

    Computed at least in float32, also under autocast. A logit of -inf has the weight 0.
    """
    with torch.autocast(logits.device.type, enabled=False):
        weights: Tensor = _Sparsemax.apply(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    return weights


class _Sparsemax(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ordered = logits.sort(-1, descending=True).values
        total, rank = ordered.cumsum(-1), torch.arange(1, logits.shape[-1] + 1, device=logits.device)
        # Support: the largest k with 1 + k z_(k) > sum of the k largest.
        size = (1 + rank * ordered > total).sum(-1, keepdim=True)
        threshold = (total.gather(-1, size - 1) - 1) / size
        weights = (logits - threshold).clamp(min=0)
        ctx.save_for_backward(weights > 0)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (support,) = ctx.saved_tensors
        inside = torch.where(support, gradient, 0.0)
        mean = inside.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
        return torch.where(support, gradient - mean, 0.0)
