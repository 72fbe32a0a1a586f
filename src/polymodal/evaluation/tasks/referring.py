"""Referring-expression comprehension: predicted boxes against reference boxes, for each branch of a method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.data.columns.expressions import ReferringExpression
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.panels import EXAMPLES, NEUTRAL, Panels, boxes_panel, clipped, shown_images, text_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Expressions
from polymodal.modalities.boxes import intersection_over_union
from polymodal.training.run import answers
from polymodal.types import Batch, Example

IOU_THRESHOLD = 0.5  # IoU of a correct box
SCORE_THRESHOLD = 0.5  # minimum score of a predicted box
MAX_MISLED = 512  # expressions that are also tried with another image, and another expression
BATCH = 128
BRANCH_COLORS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73")

PredictedBoxes = dict[str, tuple[Float[Tensor, "expressions queries 4"], Float[Tensor, "expressions queries"]]]


@runtime_checkable
class CanDetect(Protocol):
    """Capability: the boxes that the texts of a batch refer to in its images.

    num_queries: boxes per text.
    """

    num_queries: int

    def predict_boxes(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each branch, boxes (left, top, right, bottom as fractions of the image) and their scores."""
        ...


def referring_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Scores of each branch, over expressions for one object; the unit is an image with all of its expressions.

    acc@0.5: the fraction whose best box has an IoU of 0.5 or more with the reference; chance: a random one of the boxes
    that the image's expressions refer to. It is also computed by the number of clauses. mean_IoU: of that box.
    text_gain, image_gain: accuracy less that with another image's expression, and less that with another
    image, over at most `MAX_MISLED` expressions.
    A method with several queries also predicts sets. sets: the fraction of all expressions with exactly as many boxes
    above a score of 0.5 as objects, each matched to one; none: that of expressions without an object.
    """
    assert isinstance(method, CanDetect)
    _, examples = reader.read_split(split)
    pairs = [(number, one) for number, example in enumerate(examples) for one in example["expressions"]]
    single = [(number, one) for number, one in pairs if len(one.boxes) == 1]
    scores = _single_scores(method, processor, examples, split, single) if single else []
    if method.num_queries > 1 and pairs:
        owner = np.array([number for number, _ in pairs], dtype=np.int64)
        every = _located(method, processor, examples, owner, [one.text for _, one in pairs])
        for branch, predicted in every.items():
            scores += _set_scores(f"{split}/referring/{branch}", predicted, [one for _, one in pairs], owner)
    if pairs and not scores:
        warnings.warn(
            f"The split '{split}' has no expression for one object, and this run predicts one box: nothing of it is "
            "scored; train with --num-queries above 1.",
            stacklevel=2,
        )
    return scores


def _single_scores(
    method: nn.Module,
    processor: Processor,
    examples: list[Example],
    split: str,
    single: Sequence[tuple[int, ReferringExpression]],
) -> list[Score]:
    """single: expressions for one object, at least one, each with the number of its image."""
    owner = np.array([number for number, _ in single], dtype=np.int64)
    texts = [one.text for _, one in single]
    some = np.linspace(0, len(texts) - 1, min(len(texts), MAX_MISLED)).astype(int)
    some_texts, elsewhere = [texts[place] for place in some], np.roll(some, len(some) // 2)
    right = _located(method, processor, examples, owner, texts)
    misled = _located(method, processor, examples, owner[some], [texts[place] for place in elsewhere])
    blind = _located(method, processor, examples, owner[elsewhere], some_texts)
    truth = torch.tensor([one.boxes[0] for _, one in single])
    by_chance = np.array([1 / len(_boxes(examples[number]["expressions"])) for number in owner])
    clauses = np.array([one.clauses for _, one in single])
    scores = []
    for branch, predicted in right.items():
        overlap, *others = _overlap(predicted, truth), *(_overlap(one[branch], truth[some]) for one in (misled, blind))
        hits, without_text, without_image = ((one >= IOU_THRESHOLD).astype(float) for one in (overlap, *others))
        name = f"{split}/referring/{branch}"
        scores += [
            Score.per_cluster(f"{name}/acc@0.5", hits, owner, float(by_chance.mean())),
            Score.per_cluster(f"{name}/mean_IoU", overlap, owner),
            Score.per_cluster(f"{name}/text_gain", hits[some] - without_text, owner[some], 0.0),
            Score.per_cluster(f"{name}/image_gain", hits[some] - without_image, owner[some], 0.0),
        ]
        for count in sorted(set(clauses.tolist()) - {0}):
            of_count = clauses == count
            chance = float(by_chance[of_count].mean())
            scores.append(Score.per_cluster(f"{name}/{count}_clauses/acc@0.5", hits[of_count], owner[of_count], chance))
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


def _overlap(
    predicted: tuple[Tensor, Tensor], truth: Float[Tensor, "expressions 4"]
) -> Float[np.ndarray, " expressions"]:
    """IoU of the box with the highest score with the reference; 0 where a score or the box is NaN."""
    boxes, sure = predicted
    likeliest = boxes[torch.arange(len(boxes)), sure.argmax(1)]
    overlap = intersection_over_union(likeliest, truth)[0].double()
    return overlap.where(~sure.isnan().any(1), 0.0).nan_to_num(0.0).numpy()


def _set_scores(
    name: str, predicted: tuple[Tensor, Tensor], expressions: Sequence[ReferringExpression], owner: np.ndarray
) -> list[Score]:
    """owner: for each expression, the number of its image."""
    whole = np.array(
        [
            not sure.isnan().any() and all_matched(corners[sure > SCORE_THRESHOLD], one.boxes)
            for corners, sure, one in zip(*predicted, expressions, strict=True)
        ],
        dtype=float,
    )
    empty = np.array([not one.boxes for one in expressions])
    scores = [Score.per_cluster(f"{name}/sets", whole, owner)]
    if empty.any():
        scores.append(Score.per_cluster(f"{name}/none/accuracy", whole[empty], owner[empty]))
    return scores


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
    kept = [
        (example, of_image[len(of_image) // 2]) for example, of_image in zip(examples, single, strict=True) if of_image
    ]
    if not kept:
        return Panels([[text_panel(["no expression for one object"])]], "Referring expressions")
    texts, shown = [one.text for _, one in kept], [example for example, _ in kept]
    predicted = _located(inputs.method, inputs.processor, shown, np.arange(len(shown)), texts)
    images = shown_images([example["image"] for example in shown])
    panels = []
    for number, (image, (_, one)) in enumerate(zip(images, kept, strict=True)):
        boxes: list[tuple[Sequence[float], str, str]] = [(one.boxes[0], "black", ":")]
        for color, (corners, scores) in zip(BRANCH_COLORS, predicted.values(), strict=False):
            boxes.append((corners[number, int(scores[number].argmax())].tolist(), color, "-"))
        panels.append(boxes_panel(image, boxes, clipped(one.text)))
    key = [("dotted: reference", NEUTRAL), *zip((f"box of {name}" for name in predicted), BRANCH_COLORS, strict=False)]
    rows = [panels[start : start + EXAMPLES] for start in range(0, len(panels), EXAMPLES)]
    return Panels([[*rows[0], text_panel(key)], *rows[1:]], "Referring expressions", [1.4] * EXAMPLES + [1.2])


task = Task(
    capability=CanDetect,
    requires=((Expressions,),),
    condition=lambda inputs: "expressions" in getattr(inputs.processor, "columns", ()),
    order=130,
    score=lambda inputs: inputs.over_test_splits(referring_scores),
    validate=lambda inputs: referring_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    plot=plot,
    metrics={"*_gain": MetricKind(is_fraction=False)}
    | dict.fromkeys(("acc@0.5", "mean_IoU", "sets", "accuracy"), MetricKind()),
    headline=("referring/*/acc@0.5", "referring/*/sets"),
    forward_methods=("predict_boxes",),
    hint="ground RUN",
)
