"""Regions and texts: retrieval of one by the other, recognition of boxes, and the box of a phrase."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.columns.regions import PhraseBox
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.panels import (
    EXAMPLES,
    NEUTRAL,
    Panels,
    boxes_panel,
    clipped,
    shown_images,
    text_panel,
    verdict_color,
)
from polymodal.evaluation.retrieval import METRICS, ranks, retrieval_scores
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.evaluation.tasks.referring import IOU_THRESHOLD, CanDetect
from polymodal.modalities import Image, Regions
from polymodal.modalities.boxes import intersection_over_union
from polymodal.training.run import answers, embed
from polymodal.types import Batch, Example

BATCH = 128


@runtime_checkable
class CanEncodeRegions(Protocol):
    """Capability: the embedding of a box of each image, in the space of the texts."""

    def encode_regions(self, batch: Batch) -> Tensor: ...


class RegionTest(NamedTuple):
    """All regions of examples with their vectors, and the vectors of their different phrases.

    owner: of each region, the number of its example; phrase: of each region, the number of its phrase.
    """

    regions: list[PhraseBox]
    owner: np.ndarray
    phrase: np.ndarray
    names: list[str]
    vectors: Float[Tensor, "regions dim"]
    names_vectors: Float[Tensor, "names dim"]

    @classmethod
    def of(cls, method: nn.Module, processor: Processor, examples: list[Example]) -> RegionTest | None:
        """None without a region."""
        pairs = [(number, region) for number, one in enumerate(examples) for region in one.get("regions") or ()]
        if not pairs:
            return None
        columns = {"image": [examples[number]["image"] for number, _ in pairs], "box": [one.box for _, one in pairs]}
        vectors = torch.cat(answers(method, processor, "encode_regions", columns, BATCH))
        names, phrase = np.unique([one.phrase for _, one in pairs], return_inverse=True)
        texts = embed(method, processor, text=names.tolist())["text"]
        owner = np.array([number for number, _ in pairs], dtype=np.int64)
        return cls([one for _, one in pairs], owner, phrase, names.tolist(), vectors, texts)


def region_text_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Scores of all regions of a split with a phrase.

    region_to_text: retrieval of a region's phrase among the different phrases; the unit is an image. text_to_region:
    retrieval of one of a phrase's regions among all regions; the unit is a phrase. region_recognition/mAcc: the mean
    over phrases of the fraction of their regions that are most similar to them.
    region_grounding, of a method that predicts boxes: the mean IoU of the box of a phrase in its image, the fraction
    with an IoU of 0.5 or more, and the mean distance of its edges, as a fraction of the side. Phrases that two regions
    of an image have are left out. Chance: the box of another region, if there is one.
    """
    _, examples = reader.read_split(split)
    test = RegionTest.of(method, processor, examples)
    if test is None:
        return []
    of_phrase = defaultdict(list)
    for number, phrase in enumerate(test.phrase.tolist()):
        of_phrase[phrase].append(number)
    to_text = [np.array([phrase]) for phrase in test.phrase]
    to_region = [np.array(of_phrase[number]) for number in range(len(test.names))]
    rank_of_text = ranks(test.vectors, test.names_vectors, to_text)
    rank_of_region = ranks(test.names_vectors, test.vectors, to_region)
    count = np.arange(len(test.names))
    return [
        *retrieval_scores(f"{split}/region_to_text", rank_of_text, to_text, len(test.names), test.owner),
        *retrieval_scores(f"{split}/text_to_region", rank_of_region, to_region, len(test.regions), count),
        Score(
            f"{split}/region_recognition/mAcc",
            np.array([(rank_of_text[regions] == 1).mean() for regions in to_region]),
            1 / len(test.names),
        ),
        *_grounding_scores(method, processor, examples, split, test),
    ]


def _grounding_scores(
    method: Any, processor: Processor, examples: list[Example], split: str, test: RegionTest
) -> list[Score]:
    pairs = list(zip(test.owner.tolist(), test.phrase.tolist(), strict=True))
    counts = Counter(pairs)
    once = np.array([counts[pair] == 1 for pair in pairs])
    if not (isinstance(method, CanDetect) and method.num_queries and once.any()):
        return []
    owner, regions = test.owner[once], [one for one, single in zip(test.regions, once, strict=True) if single]
    truth = torch.tensor([one.box for one in regions])
    predicted = _predicted(method, processor, examples, owner, [one.phrase for one in regions])
    overlap = intersection_over_union(predicted, truth)[0].numpy()
    elsewhere = intersection_over_union(truth.roll(len(truth) // 2, 0), truth)[0].numpy()
    by_chance = [float(elsewhere.mean()), float((elsewhere >= IOU_THRESHOLD).mean())] if len(truth) > 1 else [None] * 2
    name = f"{split}/region_grounding"
    return [
        Score.per_cluster(f"{name}/mean_IoU", overlap, owner, by_chance[0]),
        Score.per_cluster(f"{name}/acc@0.5", (overlap >= IOU_THRESHOLD).astype(float), owner, by_chance[1]),
        Score.per_cluster(
            f"{name}/box_error", (predicted - truth).abs().mean(1).numpy(), owner, higher_is_better=False
        ),
    ]


def _predicted(
    method: Any, processor: Processor, examples: list[Example], owner: np.ndarray, texts: list[str]
) -> Float[Tensor, "texts 4"]:
    """The most certain box of each text, by the method's first branch; a NaN becomes the corner."""
    columns = {"image": [examples[number]["image"] for number in owner.tolist()], "text": texts}
    parts = [next(iter(part.values())) for part in answers(method, processor, "predict_boxes", columns, BATCH)]
    boxes, sure = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return boxes[torch.arange(len(boxes)), sure.argmax(1)].nan_to_num(0.0)


def plot(inputs: TaskInputs) -> Panels:
    """Boxes with their phrase and the most similar one, and the box that the method predicts for the phrase."""
    _, examples = inputs.test_examples(2 * EXAMPLES)
    first = [example | {"regions": example["regions"][:1]} for example in examples if example.get("regions")]
    test = RegionTest.of(inputs.method, inputs.processor, first)
    if test is None:
        return Panels([[text_panel(["no region"])]], "Regions and phrases")
    nearest = (test.vectors @ test.names_vectors.T).nan_to_num(-np.inf).argmax(1).tolist()
    grounds = isinstance(inputs.method, CanDetect) and inputs.method.num_queries > 0
    texts = [one.phrase for one in test.regions]
    located = _predicted(inputs.method, inputs.processor, first, test.owner, texts) if grounds else None
    panels = []
    for number, image in enumerate(shown_images([example["image"] for example in first])):
        region, name = test.regions[number], test.names[nearest[number]]
        drawn: list[tuple[Any, str, str]] = [(region.box, verdict_color(name == region.phrase), "-")]
        if located is not None:
            drawn.append((located[number].tolist(), "#0072b2", ":"))
        title = f"{clipped(region.phrase, lines=1)}\nnearest: {clipped(name, 16, 1)}"
        panels.append(boxes_panel(image, drawn, title))
    key = [("solid: region; green: its phrase is the nearest", NEUTRAL), ("dotted: box of the phrase", "#0072b2")]
    rows = [panels[start : start + EXAMPLES] for start in range(0, len(panels), EXAMPLES)]
    return Panels([[*rows[0], text_panel(key)], *rows[1:]], "Regions and phrases", [1.2] * EXAMPLES + [1.2])


task = Task(
    capability=CanEncodeRegions,
    requires=((Regions, Image),),
    condition=lambda inputs: "regions" in getattr(inputs.processor, "columns", ()),
    order=55,
    score=lambda inputs: inputs.over_test_splits(region_text_scores),
    plot=plot,
    metrics=METRICS
    | {"mAcc": MetricKind(), "mean_IoU": MetricKind(), "acc@0.5": MetricKind()}
    | {"box_error": MetricKind(higher_is_better=False)},
    headline=("text_to_region/R@10", "region_to_text/R@10", "region_recognition/mAcc", "region_grounding/mean_IoU"),
    forward_methods=("embed", "encode_regions"),
    hint="ground RUN",
)
