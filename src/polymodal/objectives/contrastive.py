"""Contrastive losses over a batch of pairs (image-text contrastive, ITC): row i of one modality matches row i of the
other.

The batch x batch matrix of logits is never held: logits are computed in blocks of rows, and recomputed in the backward
pass (a plain loop over blocks would not save memory, as autograd keeps the logits of each block). With several
processes, each passes its own rows of the batch and gets the mean loss of these rows against the rows of all processes
(see `layers.distributed`). Computed at least in float32, also under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather, rank, reduce_scatter

BLOCK = 4_194_304  # logits in memory at once: 16 MiB of float32


def info_nce(
    a: Float[Tensor, "batch dim"],
    b: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    label_smoothing: float = 0.0,
    labels: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return symmetric InfoNCE: the mean of the cross-entropies from a to b and from b to a (CLIP, figure 3).

    a, b: L2-normalized. logit_scale: inverse temperature. label_smoothing: in [0, 1), fraction of the target
    distribution that is uniform over all candidates. labels: rows with equal labels, such as those with equal captions,
    are positives of each other and share the target equally (UniCL, Yang et al. 2022, equations 3 and 4).
    """
    with torch.autocast(a.device.type, enabled=False):
        return _InfoNCE.apply(*_at_least_float32(a, b, logit_scale), label_smoothing, labels)


def siglip_loss(
    a: Float[Tensor, "batch dim"],
    b: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the pairwise sigmoid loss, summed over each row and averaged over rows (SigLIP, algorithm 1).

    a, b: L2-normalized. logit_scale: inverse temperature. logit_bias: added to every logit; initialized to -10 in the
    paper.
    """
    with torch.autocast(a.device.type, enabled=False):
        return _Sigmoid.apply(*_at_least_float32(a, b, logit_scale, logit_bias))


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def _row_blocks(a: Tensor, b: Tensor) -> list[slice]:
    rows = max(1, BLOCK // len(b))
    return [slice(start, min(start + rows, len(a))) for start in range(0, len(a), rows)]


class _InfoNCE(Function):
    """InfoNCE with logits recomputed in the backward pass.

    a: rows of this process. every: rows of b of all processes, of which this process's begin at `ctx.first`.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, label_smoothing: float, group: Tensor | None) -> Tensor:
        # Candidates are the rows of b of all processes; queries are this process's rows of a.
        every, size = all_gather(b), len(a)
        groups = None if group is None else (group, all_gather(group))
        own = slice(rank() * size, (rank() + 1) * size)
        rows, columns = a.new_empty(size), a.new_full((len(every),), -torch.inf)
        for block in _row_blocks(a, every):
            logits = (a[block] * scale) @ every.T
            # Running log-normalizers: over all candidates of a row, and over the rows seen so far of a column.
            rows[block] = logits.logsumexp(1)
            columns = torch.logaddexp(columns, logits.logsumexp(0))
        # A column's normalizer covers the rows of all processes.
        columns = all_gather(columns[None]).logsumexp(0)
        ctx.save_for_backward(a, every, scale, rows, columns)
        ctx.label_smoothing, ctx.first, ctx.groups = label_smoothing, own.start, groups
        matches = b
        if groups is not None:
            matches = torch.cat([_shared(groups, block, every.dtype) @ every for block in _row_blocks(a, every)])
        matching = scale * torch.linalg.vecdot(a, matches)
        everywhere = scale * (a @ every.mean(0))
        # sum_j t_j logit_j for t = (1 - smoothing) * positives + smoothing * uniform, without the logits.
        target = (1 - label_smoothing) * matching + label_smoothing * everywhere
        return ((rows + columns[own]) / 2 - target).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        a, every, scale, rows, columns = ctx.saved_tensors
        grad_a, grad_every = torch.empty_like(a), torch.zeros_like(every)
        for block in _row_blocks(a, every):
            logits = (a[block] * scale) @ every.T
            by_row = (logits - rows[block, None]).exp_()
            by_column = logits.sub_(columns).exp_()
            # d loss / d logits = (softmax over rows + softmax over columns) / 2 - target.
            residual = by_row.add_(by_column).mul_(0.5)
            residual -= ctx.label_smoothing / len(every)
            if ctx.groups is None:
                residual.diagonal(ctx.first + block.start)[: len(residual)].sub_(1 - ctx.label_smoothing)
            else:
                residual -= (1 - ctx.label_smoothing) * _shared(ctx.groups, block, residual.dtype)
            grad_a[block] = residual @ every
            grad_every.addmm_(residual.T, a[block])
        grad_scale = torch.dot(grad_a.flatten(), a.flatten())
        step = gradient / len(a)
        return grad_a.mul_(step * scale), reduce_scatter(grad_every.mul_(step * scale)), grad_scale * step, None, None


def _shared(groups: tuple[Tensor, Tensor], rows: slice, dtype: torch.dtype) -> Float[Tensor, "rows candidates"]:
    """Return the targets of some rows: uniform over the candidates with an equal label."""
    same = (groups[0][rows, None] == groups[1]).to(dtype)
    return same / same.sum(1, keepdim=True)


class _Sigmoid(Function):
    """Sigmoid loss with logits recomputed in the backward pass; variables as in `_InfoNCE`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        every = all_gather(b)
        ctx.first = rank() * len(a)
        ctx.save_for_backward(a, every, scale, bias)
        total = a.new_zeros(())
        for block in _row_blocks(a, every):
            logits = torch.addmm(bias, a[block] * scale, every.T)
            # softplus(-logit) for positives, softplus(logit) for negatives: flip the sign on the diagonal.
            logits.diagonal(ctx.first + block.start)[: len(logits)].neg_()
            total += F.softplus(logits).sum()
        return total / len(a)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, every, scale, bias = ctx.saved_tensors
        grad_a, grad_every, grad_bias = torch.empty_like(a), torch.zeros_like(every), torch.zeros_like(bias)
        for block in _row_blocks(a, every):
            derivative = torch.addmm(bias, a[block] * scale, every.T).sigmoid_()
            # d softplus(-x) / dx = sigmoid(x) - 1 on the diagonal, d softplus(x) / dx = sigmoid(x) elsewhere.
            derivative.diagonal(ctx.first + block.start)[: len(derivative)].sub_(1)
            grad_bias += derivative.sum()
            grad_a[block] = derivative @ every
            grad_every.addmm_(derivative.T, a[block])
        step = gradient / len(a)
        grad_scale = torch.dot(grad_a.flatten(), a.flatten())
        return (
            grad_a.mul_(step * scale),
            reduce_scatter(grad_every.mul_(step * scale)),
            grad_scale * step,
            grad_bias * step,
        )
