"""What losses and layers that look at the whole batch need when its rows lie on several processes.

Every process holds the same number of rows; process r has rows r * rows to (r + 1) * rows - 1 of the batch. A loss
returns the mean over its own rows, and the trainer averages gradients over processes, so a gradient that flows into
rows of another process is summed there and not averaged. With one process all of this is the identity.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

# torch 2.13 renamed them and warns of the old names at every call.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(own: Float[Tensor, rows * dims]) -> Float[Tensor, all_rows * dims]:
    """The rows of all processes, without gradient."""
    if world_size() == 1:
        return own
    everyone = own.new_empty((world_size() * len(own), *own.shape[1:]))
    _all_gather(everyone, own.contiguous())
    return everyone


def reduce_scatter(everyone: Float[Tensor, all_rows * dims]) -> Float[Tensor, rows * dims]:
    """Each process's own rows of the sum over processes: what `gather` does, backwards."""
    if world_size() == 1:
        return everyone
    own = everyone.new_empty((len(everyone) // world_size(), *everyone.shape[1:]))
    _reduce_scatter(own, everyone.contiguous())
    return own


def all_gather_with_grad(own: Float[Tensor, rows * dims]) -> Float[Tensor, all_rows * dims]:
    """The rows of all processes, with gradient: for statistics over the batch that have no blockwise form."""
    return _AllGather.apply(own) if world_size() > 1 else own


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return all_gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return reduce_scatter(gradient)
