"""Contrastive losses over a batch of pairs: row i of one modality belongs to row i of the other.

Neither loss ever holds the batch x batch matrix: logits are computed in blocks of rows, and computed again in the
backward pass (a loop over blocks alone would not do, since autograd keeps each block's logits).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

BLOCK = 4_194_304  # logits in memory at once: 16 MiB of float32


def info_nce(
    a: Float[Tensor, "batch dim"],
    b: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: the mean of the cross-entropies from a to b and from b to a (CLIP, figure 3).

    a, b: L2-normalised. scale: inverse temperature. label_smoothing: in [0, 1), the share of the target that is spread
    over all candidates.
    """
    return _InfoNCE.apply(a, b, scale, label_smoothing)


def sigmoid_loss(
    a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], scale: Float[Tensor, ""], bias: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Every pair of the batch as a binary decision, summed over a row and averaged over rows (SigLIP, algorithm 1).

    a, b: L2-normalised. scale: inverse temperature. bias: added to every logit; starts at -10 in the paper.
    """
    return _Sigmoid.apply(a, b, scale, bias)


def _row_blocks(a: Tensor, b: Tensor) -> list[slice]:
    rows = max(1, BLOCK // len(b))
    return [slice(start, start + rows) for start in range(0, len(a), rows)]


class _InfoNCE(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, label_smoothing: float) -> Tensor:
        size = len(a)
        rows, columns = a.new_empty(size), a.new_full((size,), -torch.inf)
        for block in _row_blocks(a, b):
            logits = (a[block] * scale) @ b.T
            rows[block] = logits.logsumexp(1)
            columns = torch.logaddexp(columns, logits.logsumexp(0))
        ctx.save_for_backward(a, b, scale, rows, columns)
        ctx.label_smoothing = label_smoothing
        matching = scale * torch.linalg.vecdot(a, b)
        everywhere = scale * (a @ b.mean(0))
        target = (1 - label_smoothing) * matching + label_smoothing * everywhere
        return ((rows + columns) / 2 - target).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, b, scale, rows, columns = ctx.saved_tensors
        size = len(a)
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
        for block in _row_blocks(a, b):
            logits = (a[block] * scale) @ b.T
            by_row = (logits - rows[block, None]).exp_()
            by_column = logits.sub_(columns).exp_()
            residual = by_row.add_(by_column).mul_(0.5)  # now the derivative by each logit, but for the target
            residual -= ctx.label_smoothing / size
            residual.diagonal(block.start).sub_(1 - ctx.label_smoothing)
            grad_a[block] = residual @ b
            grad_b.addmm_(residual.T, a[block])
        grad_scale = torch.dot(grad_a.flatten(), a.flatten())
        step = gradient / size
        return grad_a.mul_(step * scale), grad_b.mul_(step * scale), grad_scale * step, None


class _Sigmoid(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, scale, bias)
        total = a.new_zeros(())
        for block in _row_blocks(a, b):
            logits = torch.addmm(bias, a[block] * scale, b.T)
            logits.diagonal(block.start).neg_()
            total += F.softplus(logits).sum()
        return total / len(a)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, scale, bias = ctx.saved_tensors
        grad_a, grad_b, grad_bias = torch.empty_like(a), torch.zeros_like(b), torch.zeros_like(bias)
        for block in _row_blocks(a, b):
            derivative = torch.addmm(bias, a[block] * scale, b.T).sigmoid_()
            derivative.diagonal(block.start).sub_(1)
            grad_bias += derivative.sum()
            grad_a[block] = derivative @ b
            grad_b.addmm_(derivative.T, a[block])
        step = gradient / len(a)
        grad_scale = torch.dot(grad_a.flatten(), a.flatten())
        return grad_a.mul_(step * scale), grad_b.mul_(step * scale), grad_scale * step, grad_bias * step
