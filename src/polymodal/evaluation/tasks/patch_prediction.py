"""Regression of image patches in raster order, each from those before it (AIM, AIMv2)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task
from polymodal.modalities import Image
from polymodal.training.run import answers
from polymodal.types import Batch

BATCH = 64


@runtime_checkable
class PredictsPatches(Protocol):
    """Capability: the squared error of normalized patches, which of them are predicted, and which are flat."""

    def patch_errors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]: ...


def patch_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Return the mean squared error of the second half of an image's patches, given the first half.

    Targets are normalized patch by patch, so that the mean of a patch has an error of about 1 (chance), and of 0 where
    the patch has one color. The ground of a drawing is easy to predict: `mse_without_flat` leaves out such patches, and
    is left out where all are; `flat` is their fraction, and the chance of `mse` is that of the others.
    """
    _, examples = reader.read_split(split)
    images = {"image": [example["image"] for example in examples]}
    batches = answers(method, processor, "patch_errors", images, BATCH)
    sums = torch.cat(
        [torch.stack([error * part for part in (wanted, wanted & ~flat)]).sum(2).T for error, wanted, flat in batches]
    )
    counts = torch.cat([torch.stack([wanted, wanted & ~flat]).sum(2).T for _, wanted, flat in batches])
    every, textured = counts.unbind(1)
    name = f"{split}/patches"
    if not every.any():
        return []  # images of a single patch
    with_texture = float(textured.sum() / every.sum())
    scores = [
        _score(f"{name}/mse_without_flat", sums[:, 1], textured, 1.0),
        _score(f"{name}/mse", sums[:, 0], every, with_texture),
        _score(f"{name}/flat", every - textured, every, None),
    ]
    return scores if with_texture else scores[1:]


def _score(name: str, total: Tensor, count: Tensor, chance: float | None) -> Score:
    units, weights = (total / count.clamp(min=1)).numpy(), count.double().numpy()
    return Score(name, units, chance, higher_is_better=False, weights=weights)


task = Task(
    capability=PredictsPatches,
    requires=((Image,),),
    order=146,
    score=lambda inputs: inputs.over_test_splits(patch_scores),
    metrics={
        "mse*": MetricKind("variances", higher_is_better=False),
        "flat": MetricKind(higher_is_better=False),
    },
    headline=("patches/mse_without_flat",),
    forward_methods=("patch_errors",),
)
