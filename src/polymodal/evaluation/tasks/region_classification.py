"""Classification of regions: the name of the object in a given box."""

from __future__ import annotations

import re
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.evaluation.classification import predicted_classes
from polymodal.evaluation.panels import EXAMPLES, Panels, boxes_panel, clipped, text_panel, verdict_color
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import ITEMS, Task, TaskInputs, has_names
from polymodal.modalities import Image, Regions, Video
from polymodal.modalities.image import to_rgb
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
    """Top-1 accuracy of names: correct is a word of the object's name; objects without a known name are left out.

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
    """A box in pixels as fractions of the center crop; None where it is outside."""
    side = min(height, width)
    offsets = ((width - side) / 2, (height - side) / 2) * 2
    left, top, right, bottom = (
        min(max((edge - offset) / side, 0.0), 1.0) for edge, offset in zip(box, offsets, strict=True)
    )
    return (left, top, right, bottom) if right > left and bottom > top else None


def _scores(inputs: TaskInputs) -> list[Score]:
    return inputs.over_test_splits(region_scores, inputs.item)


def plot(inputs: TaskInputs) -> Panels:
    """The first region of images or first frames, with its name and the most probable one."""
    assert inputs.item is not None
    rows, examples = inputs.test_examples(2 * EXAMPLES)
    panels = []
    for row, example in zip(rows.tolist(), examples, strict=True):
        height, width = _extent(inputs.reader, row, inputs.item)
        pixels = _frame(inputs, row)
        inside = ((region, in_square(region.box, height, width)) for region in example["regions"])
        for region, box in [(region, box) for region, box in inside if box is not None][:1]:
            shown = first_frame(example[inputs.item]) if inputs.item == "video" else example[inputs.item]
            columns: dict[str, list[Any]] = {inputs.item: [shown], "box": [box]}
            (likely,) = answers(inputs.method, inputs.processor, "classify_regions", columns)
            number = int(predicted_classes(likely.numpy())[0])
            name = inputs.processor.entities[number] if number >= 0 else "none"
            right = name in re.findall(r"[^\W\d_]+", region.name.lower())
            title = f"{clipped(region.name, lines=1)}\npredicted: {clipped(name, 14, 1)}"
            panels.append(boxes_panel(pixels, [(box, verdict_color(right), "-")], title))
    lines = [panels[start : start + EXAMPLES] for start in range(0, len(panels), EXAMPLES)]
    return Panels(lines or [[text_panel(["no region"])]], "Names of regions; green: correct", [1.2] * EXAMPLES)


def _frame(inputs: TaskInputs, row: int) -> Float[Tensor, "3 side side"]:
    """The square in the center of an image, or of the first frame of a clip, on the scale 0-1."""
    value = inputs.corpus.value(row, inputs.item_column)
    pixels = value.frames[0] if inputs.item == "video" else np.asarray(to_rgb(value))
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1).float() / 255


task = Task(
    capability=CanClassifyRegions,
    requires=tuple((Regions, modality) for modality in ITEMS.values()),
    condition=lambda inputs: has_names(inputs.processor, "entities"),
    order=50,
    score=_scores,
    plot=plot,
    metrics={
        "top-1": MetricKind(),
        "top1_confident": MetricKind(),
        "abstention_rate": MetricKind(higher_is_better=False),
    },
    headline=("regions/top-1",),
    forward_methods=("classify_regions",),
)
