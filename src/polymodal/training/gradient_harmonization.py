"""Cross-modality gradient harmonization (Wu et al. 2022, arXiv 2211.02077), for methods with two or more losses.

Conflicting gradients of shared parameters indicate a misaligned sample: speech that does not describe the image, for
example. Gradients are compared per group of examples (a micro-batch; in the paper, the batch of one core; groups of one
are single triplets), or per example by the gradients of a feature that the losses share, which is cheaper. Contrastive
methods keep the whole batch as negatives: a group's gradient is its part of the gradient of the whole batch, and
without conflicts the parts add up to it; heads and temperatures of the comparison learn from the examples that are
kept. Realignment projects conflicting gradients (algorithm 1); the curriculum skips
the groups with the strongest conflicts, and more of them as training proceeds (algorithm 2).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from polymodal.errors import UserError
from polymodal.training.grad_cache import Forward, encode_again
from polymodal.training.group_gradients import (
    Gradients,
    GradientStep,
    add_comparison_gradients,
    add_gradients,
    gradients_of_groups,
    gradients_of_losses,
    gradients_of_parts,
    split_shared,
)
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
        step = GradientStep(method, batches, weights, forward, world, name)
        return (self._by_feature if self.granularity == "feature" else self._by_group)(step, threshold)

    def _by_group(self, step: GradientStep, threshold: float) -> dict[str, Tensor]:
        parameters, world = step.parameters, step.world
        compared = [any(fnmatchcase(one, pattern) for pattern in self.shared) for one in step.trained]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        reported: dict[str, Tensor] = {}
        features = step.features() if len(step.batches) > 1 and step.parts else None
        each: Iterable[tuple[Gradients, int]] = (
            ((gradients, 1) for gradients in gradients_of_groups(step, reported))
            if features is None
            else gradients_of_parts(step, features, reported)
        )
        keep: list[bool] = []  # of each row
        count = torch.zeros((), device=world.device)
        for batch, (gradients, rows) in zip(step.batches, each, strict=True):
            together, rest = split_shared(gradients, parameters, compared)
            cosine = gradient_cosine(together)
            skip = self.skips and bool(cosine <= threshold)
            self._note(
                cosine[None], torch.tensor([skip]), batch[self.misaligned].any()[None] if self.misaligned else None
            )
            keep += [not skip] * rows
            if skip:
                continue
            count += 1
            if self.realigns and cosine < 0:
                together = project_conflicting(together)
            add_gradients(sums, together.sum(0), rest)
        world.all_reduce_mean([count, *sums])
        for parameter, value in zip(parameters, sums, strict=True):
            parameter.grad = value / count if count else None
        if features is not None:
            add_comparison_gradients(step, features, torch.tensor(keep, device=world.device))
        return reported

    def _by_feature(self, step: GradientStep, threshold: float) -> dict[str, Tensor]:
        """Compare and project, for each example, the gradients of the features that several losses use (GradCache)."""
        if step.parts is None:
            raise UserError("This method does not encode examples one by one: use --gradient-granularity group.")
        features = step.features()
        losses = step.compare(features)
        by_loss = gradients_of_losses(losses, step, list(features.values()))
        by_feature = {
            key: [one for gradient in by_loss if (one := gradient[n]) is not None] for n, key in enumerate(features)
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
            cosines, ~keep, torch.cat([batch[self.misaligned] for batch in step.batches]) if self.misaligned else None
        )
        if self.realigns:
            gradients = project_conflicting(gradients)
        total = dict(zip(common, gradients.sum(0).split(widths, 1), strict=True))
        total |= {
            key: torch.stack(values).sum(0).flatten(1)
            for key, values in by_feature.items()
            if values and key not in total
        }
        count = keep.sum().float()
        step.world.all_reduce_mean([count])
        # The mean over the examples that are kept; those that are skipped have a gradient of zero.
        scale = keep.float() * (len(keep) / count if count else 0.0)
        upstream = {key: (scale[:, None] * value).view_as(features[key]) for key, value in total.items()}
        encode_again(step.method, step.batches, step.forward, step.parts[0], upstream)
        for parameter in step.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient if count else None
        if count:
            step.world.all_reduce_mean([parameter.grad for parameter in step.parameters if parameter.grad is not None])
        add_comparison_gradients(step, features, keep)
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
