"""Backward passes: in one pass, with gradient accumulation over micro-batches, or with gradient caching (GradCache)."""

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
    """Contrastive method in two parts: `encode` each example independently, then `contrastive_losses` of the batch.

    This permits GradCache (Gao et al. 2021): a large batch in micro-batches with the exact gradients of the whole
    batch. A subclass that overrides `losses` opts out.
    """

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Encode a micro-batch. Returns tensors with one row per example."""
        raise NotImplementedError

    def contrastive_losses(self, representations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the named losses of the whole batch."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.contrastive_losses(self.encode(batch))


class Losses(Protocol):
    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...


Forward = Callable[[int], AbstractContextManager[None]]  # context of the forward pass of micro-batch n


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of losses (default weight: 1; losses with weight 0 are left out)."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items() if weights.get(name, 1.0)]).sum()


def micro_batched(method: object) -> bool:
    """Return whether the method's losses support GradCache."""
    return isinstance(method, GradCacheMethod) and type(method).losses is GradCacheMethod.losses


def backward(
    method: Any, losses_of: Losses, batches: list[Batch], weights: Mapping[str, float], forward: Forward
) -> dict[str, Tensor]:
    """Accumulate gradients of the weighted losses over micro-batches; return the detached losses.

    losses_of: the method's losses, or a DDP wrapper that averages gradients over processes.
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
    """Encode all micro-batches without a graph; return leaves that require gradients.

    Raises UserError for a method with batch norm, whose representations depend on the batch.
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
    """Apply GradCache (Gao et al. 2021, section 3.2): encode without graph, compute the losses, encode again with
    graph."""
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
