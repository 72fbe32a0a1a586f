"""Cross-modality gradient harmonization (Wu et al. 2022, arXiv 2211.02077), for methods with two or more losses.

Conflicting gradients of shared parameters indicate a misaligned sample: speech that does not describe the image, for
example. Gradients are compared per group of examples (a micro-batch; in the paper, the batch of one core). Contrastive
methods keep the whole batch as negatives: a group's gradient is its part of the gradient of the whole batch, and
without conflicts the parts add up to it. Realignment projects conflicting gradients (algorithm 1); the curriculum skips
the groups with the strongest conflicts, and more of them as training proceeds (algorithm 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.errors import UserError
from polymodal.training.grad_cache import Forward, cached_representations, halves, micro_batch_weights
from polymodal.training.parallel import World
from polymodal.types import Batch

FIRST_THRESHOLD, LAST_THRESHOLD = -0.3, 0.0  # of the cosine; it rises in a straight line


def project_conflicting(gradients: Float[Tensor, "losses parameters"]) -> Float[Tensor, "losses parameters"]:
    """Project each gradient off those it conflicts with (algorithm 1; PCGrad for more than two losses).

    For two losses: g1 - <g1, g2> / |g2|^2 g2 and likewise g2, both from the originals, when <g1, g2> < 0. More losses
    are processed in random order (Yu et al. 2020, algorithm 1). Gradients without conflict are returned unchanged.
    """
    squares = gradients.square().sum(1)
    aligned = gradients.clone()
    for one in range(len(gradients)):
        for other in torch.randperm(len(gradients)).tolist():
            along = aligned[one] @ gradients[other]
            if other != one and along < 0 and squares[other] > 0:
                aligned[one] -= along / squares[other] * gradients[other]
    return aligned


def gradient_cosine(gradients: Float[Tensor, "losses parameters"]) -> float:
    """Return the minimum cosine between two of the gradients; 1 when fewer than two are nonzero."""
    norms = gradients.norm(dim=1)
    directions = gradients[norms > 0] / norms[norms > 0, None]
    if len(directions) < 2:
        return 1.0
    cosines = directions @ directions.T
    return float(cosines[~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)].min())


class GradientHarmonizer:
    """Harmonizes gradients of several losses, and counts conflicts until `report`."""

    def __init__(self, kind: Literal["realign", "curriculum", "both"], group_size: int = 0):
        self.group_size = group_size
        self.realigns = kind in ("realign", "both")
        self.leaves_out = kind in ("curriculum", "both")
        self.seen: list[tuple[float, bool]] = []  # agreement of each micro-batch, and whether it was left out

    def backward(
        self,
        method: Any,
        batches: list[Batch],
        weights: Mapping[str, float],
        forward: Forward,
        fraction: float,
        world: World,
        name: str = "losses",
    ) -> dict[str, Tensor]:
        """Set the gradients of all trainable parameters; return the detached losses.

        fraction: of training that is done, which sets the threshold. name: of the losses in the method. If all groups
        are skipped, gradients are None, and the optimizer step changes nothing.
        """
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        threshold = FIRST_THRESHOLD + fraction * (LAST_THRESHOLD - FIRST_THRESHOLD)
        reported: dict[str, Tensor] = {}
        kept = torch.zeros((), device=world.device)
        parts = halves(method, name) if len(batches) > 1 else None
        each = (
            _of_the_whole(method, batches, weights, parameters, forward, reported, parts)
            if parts
            else _one_by_one(method, batches, weights, parameters, forward, reported, name, world)
        )
        for gradients in each:
            together, rest = _shared(gradients, parameters)
            cosine = gradient_cosine(together)
            leave_out = self.leaves_out and cosine <= threshold
            self.seen.append((cosine, leave_out))
            if leave_out:
                continue
            kept += 1
            if self.realigns and cosine < 0:
                together = project_conflicting(together)
            _add(sums, together.sum(0), rest)
        world.all_reduce_mean([kept, *sums])
        for parameter, value in zip(parameters, sums, strict=True):
            parameter.grad = value / kept if kept else None
        return reported

    def report(self) -> dict[str, dict[str, float]]:
        """Return the mean gradient cosine, the conflict rate and the skip rate since the last report."""
        count = max(len(self.seen), 1)
        figures = {
            "gradient_cosine": sum(cosine for cosine, _ in self.seen) / count,
            "conflict_rate": sum(cosine < 0 for cosine, _ in self.seen) / count,
            "skip_rate": sum(left_out for _, left_out in self.seen) / count,
        }
        self.seen.clear()
        return {"gradient_harmonization": figures}


Gradients = list[tuple[Tensor | None, ...]]  # of each loss, by each parameter


def _one_by_one(
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
        weighted = _weighted(losses, weights)
        yield [
            torch.autograd.grad(loss, parameters, retain_graph=place + 1 < len(weighted), allow_unused=True)
            for place, loss in enumerate(weighted)
        ]


def _of_the_whole(
    method: Any,
    batches: list[Batch],
    weights: Mapping[str, float],
    parameters: list[nn.Parameter],
    forward: Forward,
    reported: dict[str, Tensor],
    parts: tuple[str, str],
) -> Iterator[Gradients]:
    """Yield each micro-batch's part of the gradients of the whole batch, times their number (GradCache)."""
    encode, compare = parts
    whole = cached_representations(method, batches, forward, encode)
    with forward(len(batches)):
        losses = getattr(method, compare)(whole)
    reported |= {name: loss.detach() for name, loss in losses.items()}
    weighted, wanted = _weighted(losses, weights), [*whole.values(), *parameters]
    found = [
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
        for place, gradient in enumerate(found):
            by_vector = dict(zip(whole, gradient[: len(whole)], strict=True))
            known = {
                name: value[rows] * len(batches)
                for name, value in by_vector.items()
                if value is not None and again[name].requires_grad  # a frozen encoder has no graph
            }
            through = torch.autograd.grad(
                [again[name] for name in known],
                parameters,
                list(known.values()),
                retain_graph=place + 1 < len(found),
                allow_unused=True,
            )
            direct = gradient[len(whole) :]  # of what is used in the comparison only, such as the temperature
            group.append(tuple(map(_sum, through, direct)))
        yield group


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> list[Tensor]:
    if len(losses) < 2:
        raise UserError(
            f"--gradient-harmonization needs two or more losses; this recipe has only '{next(iter(losses))}'."
        )
    return [weights.get(name, 1.0) * loss for name, loss in losses.items() if weights.get(name, 1.0)]


def _shared(
    gradients: Gradients, parameters: list[nn.Parameter]
) -> tuple[Float[Tensor, "losses shared"], list[list[Tensor] | None]]:
    """Return the gradients of parameters that several losses share, one row per loss, and of each other parameter
    its own."""
    both = [sum(gradient[place] is not None for gradient in gradients) > 1 for place in range(len(parameters))]
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
        None if several else [own for gradient in gradients if (own := gradient[place]) is not None]
        for place, several in enumerate(both)
    ]
    return torch.stack(rows) if rows else parameters[0].new_zeros(1, 0), rest


def _add(sums: list[Tensor], together: Float[Tensor, " shared"], rest: list[list[Tensor] | None]) -> None:
    pieces = iter(together.split([value.numel() for value, own in zip(sums, rest, strict=True) if own is None]))
    for value, own in zip(sums, rest, strict=True):
        if own is None:
            value += next(pieces).view_as(value)
        else:
            for gradient in own:
                value += gradient
