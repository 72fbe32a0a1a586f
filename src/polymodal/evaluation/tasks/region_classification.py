"""What a box holds: do the names that a method gives it say what is there?"""

from __future__ import annotations

import re
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.evaluation.classification import predicted_classes
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import ITEMS, Task, TaskInputs, has_names
from polymodal.modalities import Image, Regions, Video
from polymodal.training.run import answers
from polymodal.types import Batch

BATCH = 256


@runtime_checkable
class CanClassifyRegions(Protocol):
    """Capability: for a box in each example, the probabilities of the names that the processor knows (`entities`).

    pseudo_label_threshold: below this probability of the most likely name, the method is not confident.
    """

    pseudo_label_threshold: float

    def classify_regions(self, batch: Batch) -> Tensor: ...


def region_scores(method: nn.Module, processor: Any, reader: Reader, split: str, item: str) -> list[Score]:
    """Whether the likeliest name of each box is a word of its object's name, over objects that can be named so.

    item: `video` or `image`. Boxes are of the first frame, so a clip is shown as its first frame, repeated: objects
    move out of their boxes later. Also the fraction of boxes of which the method is not confident, and the accuracy
    where it is. The unit is an example with all of its objects.
    """
    rows, examples = reader.read_split(split)
    numbers = {name: number for number, name in enumerate(processor.entities)}
    shown, boxes, right, unit = [], [], [], []
    for place, (row, example) in enumerate(zip(rows.tolist(), examples, strict=True)):
        height, width = _extent(reader, row, item)
        for region in example["regions"]:
            fitting = [numbers[word] for word in re.findall(r"[^\W\d_]+", region.name.lower()) if word in numbers]
            box = in_square(region.box, height, width)
            if fitting and box is not None:
                shown.append(first_frame(example[item]) if item == "video" else example[item])
                boxes.append(box)
                right.append(fitting)
                unit.append(place)
    if not shown:
        return []
    confident: Any = method
    named = torch.cat(answers(method, processor, "classify_regions", {item: shown, "box": boxes}, BATCH))
    first = predicted_classes(named.numpy()).tolist()
    sure = (named.amax(1) >= confident.pseudo_label_threshold).numpy()
    hits = np.array([one in fitting for one, fitting in zip(first, right, strict=True)], dtype=float)
    chance = float(np.mean([len(fitting) for fitting in right])) / len(numbers)
    units = np.unique(unit, return_inverse=True)[1]
    sures = np.bincount(units, sure)
    right_and_sure = np.bincount(units, hits * sure) / np.maximum(sures, 1)
    return [
        Score.per_cluster(f"{split}/regions/top-1", hits, units, chance),
        Score(f"{split}/regions/top1_confident", right_and_sure, chance, weights=sures),
        Score.per_cluster(f"{split}/regions/abstention_rate", 1.0 - sure, units, higher_is_better=False),
    ]


def first_frame(clip: np.ndarray) -> np.ndarray:
    """The first frame of a clip, repeated over its length."""
    return np.repeat(clip[:1], len(clip), axis=0)


def _extent(reader: Reader, row: int, item: str) -> tuple[int, int]:
    """Height and width, in pixels, of what the boxes of an example are of."""
    corpus = reader.corpus
    if item == "video":
        return corpus.value(row, corpus.column_with(Video)).frames.shape[1:3]
    image = corpus.value(row, corpus.column_with(Image))
    return image.height, image.width


def in_square(box: tuple[int, ...], height: int, width: int) -> tuple[float, ...] | None:
    """A box in pixels, in shares of the square that is cut out of the centre; None where nothing of it is inside."""
    side = min(height, width)
    offsets = ((width - side) / 2, (height - side) / 2) * 2
    left, top, right, bottom = (
        min(max((edge - offset) / side, 0.0), 1.0) for edge, offset in zip(box, offsets, strict=True)
    )
    return (left, top, right, bottom) if right > left and bottom > top else None


def _scores(inputs: TaskInputs) -> list[Score]:
    return inputs.over_test_splits(region_scores, inputs.item)


task = Task(
    capability=CanClassifyRegions,
    requires=tuple((Regions, modality) for modality in ITEMS.values()),
    condition=lambda inputs: has_names(inputs.processor, "entities"),
    order=50,
    score=_scores,
    metrics={
        "top-1": MetricKind(),
        "top1_confident": MetricKind(),
        "abstention_rate": MetricKind(higher_is_better=False),
    },
    headline=("regions/top-1",),
    forward_methods=("classify_regions",),
)
