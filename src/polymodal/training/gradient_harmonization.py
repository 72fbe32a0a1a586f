"""Cross-modality gradient harmonization (Wu et al. 2022, arXiv 2211.02077), for methods with two or more losses.

Conflicting gradients of shared parameters indicate a misaligned sample: speech that does not describe the image, for
example. Gradients are compared per group of examples (a micro-batch; in the paper, the batch of one core; groups of one
are single triplets), or per example by the gradients of a feature that the losses share, which is cheaper. Contrastive
methods keep the whole batch as negatives: a group's gradient is its part of the gradient of the whole batch, and
without conflicts the parts add up to it. Realignment projects conflicting gradients (algorithm 1); the curriculum skips
the groups with the strongest conflicts, and more of them as training proceeds (algorithm 2).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from polymodal.errors import UserError
from polymodal.training.grad_cache import Forward, cached_representations, encode_again, halves, micro_batch_weights
from polymodal.training.parallel import World
from polymodal.types import Batch

Kind = Literal["realign", "curriculum", "both", "random"]
FIRST_THRESHOLD, LAST_THRESHOLD = -0.3, 0.0  # of the cosine; it rises in a straight line


def project_conflicting(
    gradients: Float[Tensor, "losses *rows parameters"],
) -> Float[Tensor, "losses *rows parameters"]:
    """Project each gradient off those it conflicts with (algorithm 1; PCGrad for more than two losses).

    For two losses: g1 - <g1, g2> / |g2|^2 g2 and likewise g2, both from the originals, where <g1, g2> < 0. More losses
    are processed in random order (Yu et al. 2020, algorithm 1). Gradients without conflict are returned unchanged.
    rows: examples, each of which is projected by itself.
    """
    squares = gradients.square().sum(-1, keepdim=True)
    aligned = gradients.clone()
    for one in range(len(gradients)):
        for other in torch.randperm(len(gradients)).tolist():
            along = (aligned[one] * gradients[other]).sum(-1, keepdim=True)
            conflict = (along < 0) & (squares[other] > 0)
            if other != one and bool(conflict.any()):
                step = torch.where(conflict, along / squares[other], 0.0) * gradients[other]
                aligned[one] = torch.where(conflict, aligned[one] - step, aligned[one])
    return aligned


def gradient_cosine(gradients: Float[Tensor, "losses *rows parameters"]) -> Float[Tensor, "*rows"]:
    """Return the minimum cosine between two of the gradients; 1 where fewer than two are nonzero."""
    norms = gradients.norm(dim=-1, keepdim=True)
    directions = gradients / torch.where(norms > 0, norms, 1.0)
    cosines = torch.ones_like(norms[0, ..., 0])
    for one, other in itertools.combinations(range(len(gradients)), 2):
        both = (norms[one] * norms[other])[..., 0] > 0
        cosines = torch.where(both, cosines.minimum((directions[one] * directions[other]).sum(-1)), cosines)
    return cosines


class GradientHarmonizer:
    """Harmonizes gradients of several losses, and counts conflicts until `report`."""

    def __init__(
        self,
        kind: Kind,
        group_size: int = 0,
        granularity: Literal["group", "feature"] = "group",
        shared: Sequence[str] = ("*",),
        misaligned: str = "",
    ):
        """Build the transform.

        kind: realign (algorithm 1), curriculum (algorithm 2), both, or random, the control that skips as many examples
        as the curriculum, sampled at random. granularity: what is compared, the gradients of shared parameters by each
        group of examples, or those of each example's feature that several losses use, for one backward pass through the
        encoders (needs a method in two halves). shared: shell patterns of the names of the parameters that are
        compared and projected, of those that several losses use. misaligned: key of the batches that is True for
        examples known to be misaligned; the report then says how well the cosine finds them. Raises UserError for
        random groups.
        """
        if kind == "random" and granularity == "group":
            raise UserError("Examples are skipped at random by their features: use --gradient-granularity feature.")
        self.kind, self.granularity, self.group_size = kind, granularity, group_size
        self.shared, self.misaligned = tuple(shared), misaligned
        self.realigns = kind in ("realign", "both")
        self.skips = kind != "realign"
        # Of each group or example: cosine, whether it was skipped, and whether it is misaligned.
        self.cosines: list[float] = []
        self.skipped: list[bool] = []
        self.labels: list[bool] = []

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
        threshold = FIRST_THRESHOLD + fraction * (LAST_THRESHOLD - FIRST_THRESHOLD)
        if self.granularity == "feature":
            return self._by_feature(method, batches, weights, forward, threshold, world, name)
        return self._by_group(method, batches, weights, forward, threshold, world, name)

    def _by_group(
        self,
        method: Any,
        batches: list[Batch],
        weights: Mapping[str, float],
        forward: Forward,
        threshold: float,
        world: World,
        name: str,
    ) -> dict[str, Tensor]:
        names = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        compared = [any(fnmatchcase(one, pattern) for pattern in self.shared) for one in names]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        reported: dict[str, Tensor] = {}
        kept = torch.zeros((), device=world.device)
        parts = halves(method, name) if len(batches) > 1 else None
        each = (
            _of_the_whole(method, batches, weights, parameters, forward, reported, parts)
            if parts
            else _one_by_one(method, batches, weights, parameters, forward, reported, name, world)
        )
        for batch, gradients in zip(batches, each, strict=True):
            together, rest = _shared(gradients, parameters, compared)
            cosine = gradient_cosine(together)
            skip = self.skips and bool(cosine <= threshold)
            self._note(
                cosine[None], torch.tensor([skip]), batch[self.misaligned].any()[None] if self.misaligned else None
            )
            if skip:
                continue
            kept += 1
            if self.realigns and cosine < 0:
                together = project_conflicting(together)
            _add(sums, together.sum(0), rest)
        world.all_reduce_mean([kept, *sums])
        for parameter, value in zip(parameters, sums, strict=True):
            parameter.grad = value / kept if kept else None
        return reported

    def _by_feature(
        self,
        method: Any,
        batches: list[Batch],
        weights: Mapping[str, float],
        forward: Forward,
        threshold: float,
        world: World,
        name: str,
    ) -> dict[str, Tensor]:
        """Compare and project, for each example, the gradients of the features that several losses use (GradCache)."""
        parts = halves(method, name)
        if parts is None:
            raise UserError("This method does not encode examples one by one: use --gradient-granularity group.")
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        features = cached_representations(method, batches, forward, parts[0])
        with forward(len(batches)):
            losses = getattr(method, parts[1])(features)
        by_loss = [
            torch.autograd.grad(loss, [*features.values(), *parameters], retain_graph=True, allow_unused=True)
            for loss in _weighted(losses, weights)
        ]
        by_feature = {
            key: [gradient[n] for gradient in by_loss if gradient[n] is not None] for n, key in enumerate(features)
        }
        common = [key for key, values in by_feature.items() if len(values) == len(by_loss)]
        if not common:
            raise UserError("No feature is used by all losses: use --gradient-granularity group.")
        widths = [features[key].flatten(1).shape[1] for key in common]
        gradients = torch.stack(
            [torch.cat([by_feature[key][n].flatten(1) for key in common], 1) for n in range(len(by_loss))]
        )
        cosines = gradient_cosine(gradients)
        keep = cosines > threshold if self.skips else torch.ones_like(cosines, dtype=torch.bool)
        if self.kind == "random":
            keep = keep[torch.randperm(len(keep))]
        self._note(
            cosines, ~keep, torch.cat([batch[self.misaligned] for batch in batches]) if self.misaligned else None
        )
        if self.realigns:
            gradients = project_conflicting(gradients)
        kept = keep.sum().float()
        world.all_reduce_mean([kept])
        # The mean over the examples that are kept; those that are skipped have a gradient of zero.
        scale = keep.float() * (len(keep) / kept if kept else 0.0)
        total = dict(zip(common, gradients.sum(0).split(widths, 1), strict=True))
        total |= {
            key: torch.stack(values).sum(0).flatten(1)
            for key, values in by_feature.items()
            if values and key not in total
        }
        upstream = {key: (scale[:, None] * value).view_as(features[key]) for key, value in total.items()}
        encode_again(method, batches, forward, parts[0], upstream)
        for n, parameter in enumerate(parameters, start=len(features)):
            for gradient in by_loss:
                if gradient[n] is not None:  # of what is used in the comparison only, such as the temperature
                    parameter.grad = _sum(parameter.grad, gradient[n])
        for parameter in parameters:
            parameter.grad = (
                (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad) if kept else None
            )
        if kept:
            world.all_reduce_mean([parameter.grad for parameter in parameters if parameter.grad is not None])
        return {loss: value.detach() for loss, value in losses.items()}

    def _note(self, cosines: Tensor, skipped: Tensor, misaligned: Tensor | None) -> None:
        self.cosines += cosines.tolist()
        self.skipped += skipped.tolist()
        self.labels += [] if misaligned is None else misaligned.tolist()

    def report(self) -> dict[str, dict[str, float]]:
        """Return the mean gradient cosine, the conflict rate and the skip rate since the last report.

        With known misaligned examples also `misalignment_auc`, the probability that a misaligned example has a lower
        cosine than an aligned one; it is left out where either is absent.
        """
        count = max(len(self.cosines), 1)
        metrics = {
            "gradient_cosine": sum(self.cosines) / count,
            "conflict_rate": sum(cosine < 0 for cosine in self.cosines) / count,
            "skip_rate": sum(self.skipped) / count,
        }
        if 0 < sum(self.labels) < len(self.labels):
            metrics["misalignment_auc"] = float(roc_auc_score(self.labels, [-cosine for cosine in self.cosines]))
        for noted in (self.cosines, self.skipped, self.labels):
            noted.clear()
        return {"gradient_harmonization": metrics}


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
    """Yield each micro-batch's part of the gradients of the whole batch, times their number (GradCache).

    Parameters that are used in the comparison only have the gradient of the whole batch in each of them.
    """
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
