"""Cross-modality gradient harmonization (Wu et al. 2022, arXiv 2211.02077), for any method with two or more losses.

Losses that pull shared parameters in opposite directions hint at a pair that is no pair: speech that does not describe
the picture, say. Gradients are compared over each micro-batch of each process (the paper: over what one core holds).
Realignment projects conflicting gradients off each other (algorithm 1); the curriculum leaves out the micro-batches
that conflict most, and more of them as training goes on (algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.errors import UserError
from polymodal.training.processes import Processes
from polymodal.types import Batch

FIRST_THRESHOLD, LAST_THRESHOLD = -0.3, 0.0  # of the cosine; it rises in a straight line


def realign(gradients: Float[Tensor, "losses parameters"]) -> Float[Tensor, "losses parameters"]:
    """Each gradient without its part against any other one (algorithm 1; for more than two losses, PCGrad's).

    For two losses: g1 - <g1, g2> / |g2|^2 g2 and likewise g2, both from the originals, when <g1, g2> < 0. More losses
    are taken in a random order (Yu et al. 2020, algorithm 1). Gradients that agree come back as they are.
    """
    squares = gradients.square().sum(1)
    aligned = gradients.clone()
    for one in range(len(gradients)):
        for other in torch.randperm(len(gradients)).tolist():
            along = aligned[one] @ gradients[other]
            if other != one and along < 0 and squares[other] > 0:
                aligned[one] -= along / squares[other] * gradients[other]
    return aligned


def agreement(gradients: Float[Tensor, "losses parameters"]) -> float:
    """The smallest cosine between two of the gradients; 1 when fewer than two are not zero."""
    norms = gradients.norm(dim=1)
    directions = gradients[norms > 0] / norms[norms > 0, None]
    if len(directions) < 2:
        return 1.0
    cosines = directions @ directions.T
    return float(cosines[~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)].min())


class Harmony:
    """Gradients of several losses, harmonised; keeps count of what it saw until `report`."""

    def __init__(self, kind: Literal["realign", "curriculum", "both"]):
        self.realigns = kind in ("realign", "both")
        self.leaves_out = kind in ("curriculum", "both")
        self.seen: list[tuple[float, bool]] = []  # agreement of each micro-batch, and whether it was left out

    def backward(
        self,
        method: Any,
        batches: list[Batch],
        weights: Mapping[str, float],
        forward: Callable[[int], AbstractContextManager[None]],
        fraction: float,
        place: Processes,
    ) -> dict[str, Tensor]:
        """Set the gradients of all trainable parameters; returns the losses, detached and as they were.

        fraction: of the training that is done, which sets the threshold. Where everything is left out, parameters have
        no gradient, and the optimiser's step changes nothing.
        """
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        threshold = FIRST_THRESHOLD + fraction * (LAST_THRESHOLD - FIRST_THRESHOLD)
        reported: dict[str, Tensor] = {}
        kept = torch.zeros((), device=place.device)
        for number, batch in enumerate(batches):
            with forward(number):
                losses = method.losses(batch)
            if len(losses) < 2:
                raise UserError(f"--harmonise needs two or more losses; this recipe has only '{next(iter(losses))}'.")
            for name, loss in losses.items():
                reported[name] = reported.get(name, 0.0) + loss.detach() / len(batches)
            gradients = _gradients_of_each(losses, weights, parameters)
            shared = [sum(g[place] is not None for g in gradients) > 1 for place in range(len(parameters))]
            rows = [
                torch.cat(
                    [
                        (torch.zeros_like(p) if value is None else value).flatten()
                        for p, value, both in zip(parameters, gradient, shared, strict=True)
                        if both
                    ]
                )
                for gradient in gradients
                if any(shared)
            ]
            together = torch.stack(rows) if rows else torch.zeros(1, 0, device=place.device)
            cosine = agreement(together)
            leave_out = self.leaves_out and cosine <= threshold
            self.seen.append((cosine, leave_out))
            if leave_out:
                continue
            kept += 1
            if self.realigns and cosine < 0:
                together = realign(together)
            whole = iter(together.sum(0).split([p.numel() for p, both in zip(parameters, shared, strict=True) if both]))
            for index, both in enumerate(shared):
                if both:
                    sums[index] += next(whole).view_as(sums[index])
                    continue
                for gradient in gradients:
                    if (own := gradient[index]) is not None:
                        sums[index] += own
        place.average([kept, *sums])
        for parameter, value in zip(parameters, sums, strict=True):
            parameter.grad = value / kept if kept else None
        return reported

    def report(self) -> dict[str, float]:
        """Mean agreement, share of micro-batches in conflict and share left out, since the last report."""
        count = max(len(self.seen), 1)
        figures = {
            "agreement": sum(cosine for cosine, _ in self.seen) / count,
            "in_conflict": sum(cosine < 0 for cosine, _ in self.seen) / count,
            "left_out": sum(left_out for _, left_out in self.seen) / count,
        }
        self.seen.clear()
        return figures


def _gradients_of_each(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], parameters: list[torch.nn.Parameter]
) -> list[tuple[Tensor | None, ...]]:
    weighted = [weights.get(name, 1.0) * loss for name, loss in losses.items() if weights.get(name, 1.0)]
    return [
        torch.autograd.grad(loss, parameters, retain_graph=number + 1 < len(weighted), allow_unused=True)
        for number, loss in enumerate(weighted)
    ]
