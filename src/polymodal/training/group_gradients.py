"""Gradients of each loss by groups of examples, which `training.gradient_harmonization` compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.errors import UserError
from polymodal.training.grad_cache import Forward, cached_representations, micro_batch_weights
from polymodal.training.parallel import World
from polymodal.types import Batch

Gradients = list[tuple[Tensor | None, ...]]  # of each loss, by each parameter


def gradients_of_groups(
    method: Any,
    batches: list[Batch],
    weights: Mapping[str, float],
    parameters: list[nn.Parameter],
    forward: Forward,
    reported: dict[str, Tensor],
    name: str,
    world: World,
) -> Iterator[Gradients]:
    """Yield the gradients of each micro-batch on its own. reported: receives the mean losses."""
    shares = micro_batch_weights(method, batches, name, world)
    for number, (batch, unit_weights) in enumerate(zip(batches, shares, strict=True)):
        with forward(number):
            losses = getattr(method, name)(batch)
        losses = {
            loss: unit_weights.get(loss, 1 / len(batches)) * len(batches) * value for loss, value in losses.items()
        }
        for loss_name, loss in losses.items():
            reported[loss_name] = reported.get(loss_name, 0.0) + loss.detach() / len(batches)
        weighted = weighted_losses(losses, weights)
        yield [
            torch.autograd.grad(loss, parameters, retain_graph=place + 1 < len(weighted), allow_unused=True)
            for place, loss in enumerate(weighted)
        ]


def gradients_of_parts(
    method: Any,
    batches: list[Batch],
    weights: Mapping[str, float],
    parameters: list[nn.Parameter],
    forward: Forward,
    reported: dict[str, Tensor],
    parts: tuple[str, str],
) -> Iterator[Gradients]:
    """Yield each micro-batch's part of the gradients of the whole batch, times their number (GradCache).

    Parameters that are used in the comparison only have the gradient of the whole batch in each of them.
    """
    encode, compare = parts
    whole = cached_representations(method, batches, forward, encode)
    with forward(len(batches)):
        losses = getattr(method, compare)(whole)
    reported |= {name: loss.detach() for name, loss in losses.items()}
    weighted, wanted = weighted_losses(losses, weights), [*whole.values(), *parameters]
    computed = [
        torch.autograd.grad(loss, wanted, retain_graph=place + 1 < len(weighted), allow_unused=True)
        for place, loss in enumerate(weighted)
    ]
    first = 0
    for number, batch in enumerate(batches):
        with forward(number):
            again = getattr(method, encode)(batch)
        rows = slice(first, first + len(next(iter(again.values()))))
        first = rows.stop
        group: Gradients = []
        for place, gradient in enumerate(computed):
            by_vector = dict(zip(whole, gradient[: len(whole)], strict=True))
            present = {
                name: value[rows] * len(batches)
                for name, value in by_vector.items()
                if value is not None and again[name].requires_grad  # a frozen encoder has no graph
            }
            through = torch.autograd.grad(
                [again[name] for name in present],
                parameters,
                list(present.values()),
                retain_graph=place + 1 < len(computed),
                allow_unused=True,
            )
            direct = gradient[len(whole) :]  # of what is used in the comparison only, such as the temperature
            group.append(tuple(map(add_optional, through, direct)))
        yield group


def add_optional(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def weighted_losses(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> list[Tensor]:
    if len(losses) < 2:
        raise UserError(
            f"--gradient-harmonization needs two or more losses; this recipe has only '{next(iter(losses))}'."
        )
    return [weights.get(name, 1.0) * loss for name, loss in losses.items() if weights.get(name, 1.0)]


def split_shared(
    gradients: Gradients, parameters: list[nn.Parameter], compared: list[bool]
) -> tuple[Float[Tensor, "losses shared"], list[list[Tensor] | None]]:
    """Return the gradients of parameters that several losses share, one row per loss, and of each other parameter
    its own. compared: whether a parameter may be among them."""
    both = [
        chosen and sum(gradient[place] is not None for gradient in gradients) > 1
        for place, chosen in enumerate(compared)
    ]
    rows = [
        torch.cat(
            [
                (torch.zeros_like(parameter) if value is None else value).flatten()
                for parameter, value, several in zip(parameters, gradient, both, strict=True)
                if several
            ]
        )
        for gradient in gradients
        if any(both)
    ]
    rest = [
        None if several else [part for gradient in gradients if (part := gradient[place]) is not None]
        for place, several in enumerate(both)
    ]
    return torch.stack(rows) if rows else parameters[0].new_zeros(1, 0), rest


def add_gradients(sums: list[Tensor], together: Float[Tensor, " shared"], rest: list[list[Tensor] | None]) -> None:
    pieces = iter(together.split([value.numel() for value, part in zip(sums, rest, strict=True) if part is None]))
    for value, part in zip(sums, rest, strict=True):
        if part is None:
            value += next(pieces).view_as(value)
        else:
            for gradient in part:
                value += gradient
