"""Does a method find what an expression means? Boxes against the true ones, for each way that it has to find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.data.columns.expressions import ReferringExpression
from polymodal.data.loader import Reader
from polymodal.evaluation.panels import EXAMPLES, NEUTRAL, Panels, boxes_panel, clipped, shown_images, text_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Expressions
from polymodal.modalities.boxes import intersection_over_union
from polymodal.training.run import answers
from polymodal.types import Batch, Example, Processor

IOU_THRESHOLD = 0.5  # IoU of a box that counts as found
SCORE_THRESHOLD = 0.5  # how sure a method is of a box that it gives
BATCH = 128
BRANCH_COLORS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73")

PredictedBoxes = dict[str, tuple[Float[Tensor, "expressions queries 4"], Float[Tensor, "expressions queries"]]]


@runtime_checkable
class CanDetect(Protocol):
    """Capability: the boxes of what the texts of a batch mean in its images.

    num_queries: how many boxes are given for each.
    """

    num_queries: int

    def predict_boxes(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each way to find them, corners (left, top, right, bottom in shares of the image) and how sure it is."""
        ...


def referring_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """For each branch, over expressions that mean one object; the unit is an image with all that is said of it.

    accuracy: the share whose likeliest box has an IoU of 0.5 or more with the true one; chance takes any of the boxes
    that the expressions about the image mean. It is also given by the number of clauses. mean_IoU: of that box.
    text_gain, image_gain: accuracy less that with another image's expression, and less that with another
    image.
    A method of several queries is also asked for sets. sets: the share of all expressions for which as many boxes as
    there are objects are surer than 0.5, each with an object of its own; none: the share of those that mean nothing.
    """
    assert isinstance(method, CanDetect)
    _, examples = reader.read_split(split)
    asked = [(number, one) for number, example in enumerate(examples) for one in example["expressions"]]
    single = [(number, one) for number, one in asked if len(one.boxes) == 1]
    owner = np.array([number for number, _ in single], dtype=np.int64)
    texts = [one.text for _, one in single]
    elsewhere = np.roll(np.arange(len(texts)), len(texts) // 2)
    right = _located(method, processor, examples, owner, texts)
    misled = _located(method, processor, examples, owner, [texts[place] for place in elsewhere])
    blind = _located(method, processor, examples, owner[elsewhere], texts)
    truth = torch.tensor([one.boxes[0] for _, one in single])
    lucky = np.array([1 / len(_boxes(examples[number]["expressions"])) for number in owner])
    clauses = np.array([one.clauses for _, one in single])
    scores = []
    for branch, found in right.items():
        overlap, *others = (_overlap(one, truth) for one in (found, misled[branch], blind[branch]))
        hits, without_text, without_image = ((one >= IOU_THRESHOLD).astype(float) for one in (overlap, *others))
        name = f"{split}/referring/{branch}"
        scores += [
            Score.per_cluster(f"{name}/acc@0.5", hits, owner, float(lucky.mean())),
            Score.per_cluster(f"{name}/mean_IoU", overlap, owner),
            Score.per_cluster(f"{name}/text_gain", hits - without_text, owner, 0.0),
            Score.per_cluster(f"{name}/image_gain", hits - without_image, owner, 0.0),
        ]
        for count in sorted(set(clauses.tolist()) - {0}):
            own = clauses == count
            chance = float(lucky[own].mean())
            scores.append(Score.per_cluster(f"{name}/{count}_clauses/acc@0.5", hits[own], owner[own], chance))
    if method.num_queries > 1:
        owner = np.array([number for number, _ in asked], dtype=np.int64)
        every = _located(method, processor, examples, owner, [one.text for _, one in asked])
        for branch, found in every.items():
            scores += _set_scores(f"{split}/referring/{branch}", found, [one for _, one in asked], owner)
    return scores


def _located(
    method: nn.Module, processor: Processor, examples: list[Example], owner: np.ndarray, texts: list[str]
) -> PredictedBoxes:
    columns = {"image": [examples[number]["image"] for number in owner.tolist()], "text": texts}
    parts = answers(method, processor, "predict_boxes", columns, BATCH)
    return {
        branch: (torch.cat([part[branch][0] for part in parts]), torch.cat([part[branch][1] for part in parts]))
        for branch in parts[0]
    }


def _boxes(expressions: Sequence[ReferringExpression]) -> set[tuple[float, ...]]:
    """All that are meant by any of them."""
    return {box for one in expressions for box in one.boxes}


def _overlap(found: tuple[Tensor, Tensor], truth: Float[Tensor, "expressions 4"]) -> Float[np.ndarray, " expressions"]:
    """IoU of the likeliest box with the true one; 0 where a probability or the box is no number."""
    boxes, sure = found
    likeliest = boxes[torch.arange(len(boxes)), sure.argmax(1)]
    overlap = intersection_over_union(likeliest, truth)[0].double()
    return overlap.where(~sure.isnan().any(1), 0.0).nan_to_num(0.0).numpy()


def _set_scores(
    name: str, found: tuple[Tensor, Tensor], asked: Sequence[ReferringExpression], owner: np.ndarray
) -> list[Score]:
    """owner: for each expression, the number of its image."""
    whole = np.array(
        [
            not sure.isnan().any() and all_matched(own[sure > SCORE_THRESHOLD], one.boxes)
            for own, sure, one in zip(*found, asked, strict=True)
        ],
        dtype=float,
    )
    empty = np.array([not one.boxes for one in asked])
    return [
        Score.per_cluster(f"{name}/sets", whole, owner),
        Score.per_cluster(f"{name}/none/accuracy", whole[empty], owner[empty]),
    ]


def all_matched(boxes: Float[Tensor, "found 4"], truth: Sequence[Sequence[float]]) -> bool:
    """Whether every box has an object of its own, with an IoU of 0.5 or more, and every object a box."""
    from scipy.optimize import linear_sum_assignment

    if len(boxes) != len(truth):
        return False
    if not len(boxes):
        return True
    overlap = intersection_over_union(boxes[:, None], torch.tensor(truth)[None])[0].nan_to_num(0.0).numpy()
    near: Bool[np.ndarray, "found objects"] = overlap >= IOU_THRESHOLD
    return bool(near[linear_sum_assignment(~near)].all())


def plot(inputs: TaskInputs) -> Panels:
    """Images with an expression each: the reference box, and the box with the highest score of every branch."""
    _, examples = inputs.test_examples(2 * EXAMPLES)
    single = [[one for one in example["expressions"] if len(one.boxes) == 1] for example in examples]
    kept = [(example, own[len(own) // 2]) for example, own in zip(examples, single, strict=True) if own]
    texts, shown = [one.text for _, one in kept], [example for example, _ in kept]
    found = _located(inputs.method, inputs.processor, shown, np.arange(len(shown)), texts)
    images = shown_images([example["image"] for example in shown])
    panels = []
    for number, (image, (_, one)) in enumerate(zip(images, kept, strict=True)):
        boxes: list[tuple[Sequence[float], str, str]] = [(one.boxes[0], "black", ":")]
        for color, (corners, scores) in zip(BRANCH_COLORS, found.values(), strict=False):
            boxes.append((corners[number, int(scores[number].argmax())].tolist(), color, "-"))
        panels.append(boxes_panel(image, boxes, clipped(one.text)))
    key = [("dotted: reference", NEUTRAL), *zip((f"box of {name}" for name in found), BRANCH_COLORS, strict=False)]
    rows = [panels[start : start + EXAMPLES] for start in range(0, len(panels), EXAMPLES)]
    return Panels([[*rows[0], text_panel(key)], *rows[1:]], "Referring expressions", [1.4] * EXAMPLES + [1.2])


task = Task(
    capability=CanDetect,
    requires=((Expressions,),),
    order=130,
    score=lambda inputs: inputs.over_test_splits(referring_scores),
    validate=lambda inputs: referring_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    plot=plot,
    metrics=dict.fromkeys(("acc@0.5", "mean_IoU", "*_gain", "sets", "accuracy"), MetricKind()),
    headline=("referring/*/acc@0.5", "referring/*/sets"),
    forward_methods=("predict_boxes",),
    hint="ground RUN",
)
