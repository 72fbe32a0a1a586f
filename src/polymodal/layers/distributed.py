"""Collectives for losses and layers that need the whole batch when its rows are distributed over processes (ranks).

Every rank holds the same number of rows; rank r has rows r * rows to (r + 1) * rows - 1 of the batch. A loss returns
the mean over its own rows, and the trainer averages gradients over ranks, so a gradient with respect to the rows of
another rank is summed there, not averaged. With one process all of this is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from polymodal.modalities.text import Tokens

# torch 2.13 renamed these and warns at every call of the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


_alone: list[None] = []  # of `one_process`, one an entry; not of a thread, as autograd has threads of its own


@contextmanager
def one_process() -> Iterator[None]:
    """Make all of this the identity, also in backward passes, for what every rank computes of the same rows."""
    _alone.append(None)
    try:
        yield
    finally:
        _alone.pop()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(x: Float[Tensor, rows * dims]) -> Float[Tensor, all_rows * dims]:
    """Gather the rows of all ranks, without gradient."""
    if world_size() == 1:
        return x
    gathered = x.new_empty((world_size() * len(x), *x.shape[1:]))
    _all_gather(gathered, x.detach().contiguous())
    return gathered


def all_gather_tokens(text: Tokens, context_length: int) -> Tokens:
    """Gather the texts of all ranks, padded to a length that none exceeds."""
    if world_size() == 1:
        return text
    ids = F.pad(text.ids, (0, context_length - text.ids.shape[1]))
    return replace(text, ids=all_gather(ids), lengths=all_gather(text.lengths))


def reduce_scatter(x: Float[Tensor, all_rows * dims]) -> Float[Tensor, rows * dims]:
    """Sum over ranks and return this rank's rows: the adjoint of `all_gather`."""
    if world_size() == 1:
        return x
    summed = x.new_empty((len(x) // world_size(), *x.shape[1:]))
    _reduce_scatter(summed, x.contiguous())
    return summed


def all_gather_with_grad(x: Float[Tensor, rows * dims]) -> Float[Tensor, all_rows * dims]:
    """Gather the rows of all ranks, with gradient, for batch statistics that have no blockwise form."""
    return _AllGather.apply(x) if world_size() > 1 else x


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return all_gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return reduce_scatter(gradient)
