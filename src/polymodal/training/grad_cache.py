"""From micro-batches to gradients: in one pass, accumulated, or with cached gradients of representations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from polymodal.errors import UserError
from polymodal.types import Batch


class GradCacheMethod:
    """A method in two halves: it represents each example alone, then compares the examples of a batch.

    Methods written so can compute a large batch in small pieces, with the very gradients of the whole batch. A subclass
    that overrides `losses` gives this up.
    """

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Tensors with one row an example."""
        raise NotImplementedError

    def contrastive_losses(self, representations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of the whole batch."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.contrastive_losses(self.encode(batch))


class Losses(Protocol):
    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...


Forward = Callable[[int], AbstractContextManager[None]]  # what a forward pass of micro-batch number n runs in


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the losses, each times its weight (1 where it has none; a loss of weight 0 is left out)."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items() if weights.get(name, 1.0)]).sum()


def micro_batched(method: object) -> bool:
    """Whether the method's losses are its two halves one after the other."""
    return isinstance(method, GradCacheMethod) and type(method).losses is GradCacheMethod.losses


def backward(
    method: Any, losses_of: Losses, batches: list[Batch], weights: Mapping[str, float], forward: Forward
) -> dict[str, Tensor]:
    """Add the gradient of the weighted losses to the parameters; returns the losses, detached.

    losses_of: the method's losses, or a wrapper of them that averages gradients over processes.
    """
    if len(batches) > 1 and micro_batched(method):
        return _cached(method, batches, weights, forward)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        with forward(number):
            losses = losses_of(batch)
        (weighted_sum(losses, weights) / len(batches)).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach() / len(batches)
    return sums


def cached_representations(method: GradCacheMethod, batches: list[Batch], forward: Forward) -> dict[str, Tensor]:
    """What represents the examples of all micro-batches, computed without a graph, and a beginning of one.

    Raises UserError for a method that represents examples by the batch that they are in.
    """
    if isinstance(method, nn.Module) and any(isinstance(module, _BatchNorm) for module in method.modules()):
        raise UserError(
            "This method has batch norm, which looks at the whole batch; leave out --micro-batch and "
            "--gradient-group-size."
        )
    pieces = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            with forward(number):
                pieces.append(method.encode(batch))
    return {name: torch.cat([piece[name] for piece in pieces]).requires_grad_() for name in pieces[0]}


def _cached(
    method: GradCacheMethod, batches: list[Batch], weights: Mapping[str, float], forward: Forward
) -> dict[str, Tensor]:
    """Gradient caching (Gao et al. 2021, section 3.2): encode without a graph, compute the losses, encode again."""
    whole = cached_representations(method, batches, forward)
    with forward(len(batches)):
        losses = method.contrastive_losses(whole)
    weighted_sum(losses, weights).backward()
    first = 0
    for number, batch in enumerate(batches):
        with forward(number):
            again = method.encode(batch)
        rows = slice(first, first + len(next(iter(again.values()))))
        first = rows.stop
        known = [(again[name], tensor.grad[rows]) for name, tensor in whole.items() if tensor.grad is not None]
        torch.autograd.backward([piece for piece, _ in known], [gradient for _, gradient in known])
    return {name: loss.detach() for name, loss in losses.items()}
