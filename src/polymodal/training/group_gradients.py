"""Gradients of each loss by groups of examples, which `training.gradient_harmonization` compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather, one_process
from polymodal.training.grad_cache import Forward, cached_representations, halves, micro_batch_weights
from polymodal.training.parallel import World
from polymodal.types import Batch

Gradients = list[tuple[Tensor | None, ...]]  # of each loss, by each parameter


@dataclass(frozen=True)
class GradientStep:
    """The micro-batches of a step, and what computes their losses. name: of the losses in the method."""

    method: Any
    batches: list[Batch]
    weights: Mapping[str, float]
    forward: Forward
    world: World
    name: str

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        return {name: one for name, one in self.method.named_parameters() if one.requires_grad}

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.trained.values())

    @property
    def parts(self) -> tuple[str, str] | None:
        """Names of the two halves of the losses, if they have them (GradCache)."""
        return halves(self.method, self.name)

    def encode(self, number: int) -> dict[str, Tensor]:
        """Encode a micro-batch by the first half of the losses."""
        assert self.parts is not None
        with self.forward(number):
            return getattr(self.method, self.parts[0])(self.batches[number])

    def features(self) -> dict[str, Tensor]:
        """Encode all micro-batches without a graph; return leaves that require gradients."""
        assert self.parts is not None
        return cached_representations(self.method, self.batches, self.forward, self.parts[0])

    def compare(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of features, by the second half of the losses."""
        assert self.parts is not None
        with self.forward(len(self.batches)):
            return getattr(self.method, self.parts[1])(features)


def gradients_of_groups(step: GradientStep, reported: dict[str, Tensor]) -> Iterator[Gradients]:
    """Yield the gradients of each micro-batch on its own. reported: receives the mean losses."""
    count = len(step.batches)
    shares = micro_batch_weights(step.method, step.batches, step.name, step.world)
    for number, (batch, unit_weights) in enumerate(zip(step.batches, shares, strict=True)):
        with step.forward(number):
            losses = getattr(step.method, step.name)(batch)
        losses = {loss: unit_weights.get(loss, 1 / count) * count * value for loss, value in losses.items()}
        for loss_name, loss in losses.items():
            reported[loss_name] = reported.get(loss_name, 0.0) + loss.detach() / count
        yield gradients_of_losses(losses, step, step.parameters)


def gradients_of_parts(
    step: GradientStep, features: dict[str, Tensor], reported: dict[str, Tensor]
) -> Iterator[tuple[Gradients, int]]:
    """Yield each micro-batch's part of the gradients of the whole batch, times their number (GradCache), and its rows.

    They pass through the features of the micro-batch; for parameters of the comparison see
    `add_comparison_gradients`.
    """
    losses = step.compare(features)
    reported |= {name: loss.detach() for name, loss in losses.items()}
    computed = gradients_of_losses(losses, step, list(features.values()))
    first, count = 0, len(step.batches)
    for number in range(count):
        again = step.encode(number)
        size = len(next(iter(again.values())))
        group: Gradients = []
        for place, gradient in enumerate(computed):
            present = {
                name: value[first : first + size] * count
                for name, value in zip(features, gradient, strict=True)
                if value is not None and again[name].requires_grad  # a frozen encoder has no graph
            }
            group.append(
                torch.autograd.grad(
                    [again[name] for name in present],
                    step.parameters,
                    list(present.values()),
                    retain_graph=place + 1 < len(computed),
                    allow_unused=True,
                )
            )
        first += size
        yield group, size


def add_comparison_gradients(step: GradientStep, features: dict[str, Tensor], keep: Bool[Tensor, " batch"]) -> None:
    """Add the gradients of what the comparison uses, such as heads and the temperature: of the examples that are kept.

    keep: False for examples that are skipped, which are neither rows nor candidates here. Every process compares the
    examples that all processes keep, and adds the same; without any, it adds nothing. A collective.
    """
    kept = all_gather(keep.float()).bool()
    rows = {name: all_gather(value.detach())[kept] for name, value in features.items()}
    if not bool(kept.any()):
        return
    with one_process():
        total = torch.stack(weighted_losses(step.compare(rows), step.weights)).sum()
        if not total.requires_grad:
            return
        gradients = torch.autograd.grad(total, step.parameters, allow_unused=True)
    for parameter, gradient in zip(step.parameters, gradients, strict=True):
        parameter.grad = add_optional(parameter.grad, gradient)


def gradients_of_losses(losses: Mapping[str, Tensor], step: GradientStep, wanted: Any) -> Gradients:
    """Return the gradients of each weighted loss; None of what a loss does not use."""
    weighted = weighted_losses(losses, step.weights)
    return [
        torch.autograd.grad(loss, wanted, retain_graph=place + 1 < len(weighted), allow_unused=True)
        for place, loss in enumerate(weighted)
    ]


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
