"""Backward passes: in one pass, with gradient accumulation over micro-batches, or with gradient caching (GradCache)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from polymodal.errors import UserError
from polymodal.training.parallel import World
from polymodal.types import Batch

ALONE = World(0, 1, torch.device("cpu"))

LossesMethod = TypeVar("LossesMethod", bound=Callable[..., dict[str, Tensor]])


def two_halves(encode: str, compare: str) -> Callable[[LossesMethod], LossesMethod]:
    """Declare that a method of losses is two others of its class, one after the other.

    encode: of a batch, to tensors with one row per example. compare: of these tensors, to named losses.
    """

    def declare(losses: LossesMethod) -> LossesMethod:
        vars(losses)["halves"] = (encode, compare)
        return losses

    return declare


def whole_batch(losses: LossesMethod) -> LossesMethod:
    """Declare that losses compare the examples of a batch without `two_halves`: micro-batches are then refused."""
    vars(losses)["whole_batch"] = True
    return losses


class GradCacheMethod:
    """Contrastive method in two parts: `encode` each example independently, then `contrastive_losses` of the batch.

    This permits GradCache (Gao et al. 2021): a large batch in micro-batches with the exact gradients of the whole
    batch. A subclass that overrides `losses` opts out, unless its own are `two_halves`, too.
    """

    def encode(self, batch: Any) -> dict[str, Tensor]:
        """Encode a micro-batch. Returns tensors with one row per example."""
        raise NotImplementedError

    def contrastive_losses(self, representations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the named losses of the whole batch."""
        raise NotImplementedError

    @two_halves("encode", "contrastive_losses")
    def losses(self, batch: Any) -> dict[str, Tensor]:
        return self.contrastive_losses(self.encode(batch))


class Losses(Protocol):
    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...


Forward = Callable[[int], AbstractContextManager[None]]  # context of the forward pass of micro-batch n


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of losses (default weight: 1; losses with weight 0 are left out)."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items() if weights.get(name, 1.0)]).sum()


def halves(method: object, losses: str = "losses") -> tuple[str, str] | None:
    """Return the names of the two parts of these losses, if the method supports GradCache for them."""
    return getattr(getattr(type(method), losses, None), "halves", None)


def micro_batch_weights(
    method: object, batches: list[Batch], name: str = "losses", world: World = ALONE
) -> list[dict[str, Tensor]]:
    """Return the weights of the losses of each micro-batch, of which those of a loss add up to 1.

    A loss that is a mean over units (`mean_over`) weighs as much as the micro-batch has units, in all processes
    together: its own forward pass divides by their mean number (`objectives.reduction.global_mean`). Losses that are
    not here weigh the same in every micro-batch, as all have the same number of examples. A collective.
    """
    method_of_counts = getattr(getattr(type(method), name, None), "counts", None)
    if method_of_counts is None or len(batches) == 1:
        return [{} for _ in batches]
    counts = [getattr(method, method_of_counts)(batch) for batch in batches]
    names = list(counts[0])
    table = torch.stack(
        [torch.stack([torch.as_tensor(count[name], device=world.device).float() for name in names]) for count in counts]
    )
    world.all_reduce_mean([table])
    total = table.sum(0)
    table = torch.where(total > 0, table / torch.where(total > 0, total, 1.0), 1 / len(batches))
    return [dict(zip(names, row, strict=True)) for row in table]


def backward(
    method: Any,
    losses_of: Losses,
    batches: list[Batch],
    weights: Mapping[str, float],
    forward: Forward,
    name: str = "losses",
    world: World = ALONE,
) -> dict[str, Tensor]:
    """Accumulate gradients of the weighted losses over micro-batches; return the detached losses.

    losses_of: the method's losses, or a DDP wrapper that averages gradients over processes. name: of the losses in the
    method.
    """
    if len(batches) > 1 and (parts := halves(method, name)):
        return _cached(method, batches, weights, forward, parts)
    sums: dict[str, Tensor] = {}
    for number, (batch, unit_weights) in enumerate(
        zip(batches, micro_batch_weights(method, batches, name, world), strict=True)
    ):
        with forward(number):
            losses = {
                loss: unit_weights.get(loss, 1 / len(batches)) * value for loss, value in losses_of(batch).items()
            }
        weighted_sum(losses, weights).backward()
        for loss, value in losses.items():
            sums[loss] = sums.get(loss, 0.0) + value.detach()
    return sums


def cached_representations(method: Any, batches: list[Batch], forward: Forward, encode: str) -> dict[str, Tensor]:
    """Encode all micro-batches without a graph; return leaves that require gradients.

    Raises UserError for a method whose batch norm is trained: its representations depend on the batch.
    """
    modules = method.modules() if isinstance(method, nn.Module) else ()
    if any(isinstance(module, _BatchNorm) and module.training for module in modules):
        raise UserError("This method has batch norm, which looks at the whole batch; leave out --micro-batch.")
    pieces = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            with forward(number):
                pieces.append(getattr(method, encode)(batch))
    return {name: torch.cat([piece[name] for piece in pieces]).requires_grad_() for name in pieces[0]}


def _cached(
    method: Any, batches: list[Batch], weights: Mapping[str, float], forward: Forward, parts: tuple[str, str]
) -> dict[str, Tensor]:
    """Apply GradCache (Gao et al. 2021, section 3.2): encode without graph, compute the losses, encode again with
    graph."""
    encode, compare = parts
    whole = cached_representations(method, batches, forward, encode)
    with forward(len(batches)):
        losses = getattr(method, compare)(whole)
    weighted_sum(losses, weights).backward()
    encode_again(
        method,
        batches,
        forward,
        encode,
        {name: tensor.grad for name, tensor in whole.items() if tensor.grad is not None},
    )
    return {name: loss.detach() for name, loss in losses.items()}


def encode_again(
    method: Any, batches: list[Batch], forward: Forward, encode: str, gradients: Mapping[str, Tensor]
) -> None:
    """Encode each micro-batch with a graph and pass the gradients of its representations on to the parameters.

    gradients: of the representations of the whole batch, by name.
    """
    first = 0
    for number, batch in enumerate(batches):
        with forward(number):
            again = getattr(method, encode)(batch)
        rows = slice(first, first + len(next(iter(again.values()))))
        first = rows.stop
        known = [
            (again[name], gradient[rows])
            for name, gradient in gradients.items()
            if again[name].requires_grad  # a frozen encoder has no graph
        ]
        torch.autograd.backward([piece for piece, _ in known], [gradient for _, gradient in known])
