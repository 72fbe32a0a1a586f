"""Composed queries, an image with a text: what a transformation makes of it (TGIT), which region, which answer.

Candidates are of the same image: the results of other operations, or the crops of its other objects, so that neither
the image nor the text alone finds the right one (FuseLIP, Schlarmann et al. 2025, section 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.composed_pairs import Pair, Pixels, Side, positional, region_pairs
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.panels import EXAMPLES, TOP, Panel, Panels, clipped, image_panel
from polymodal.evaluation.retrieval import METRICS
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image
from polymodal.modalities.image_transformations import EVALUATED, FAMILIES, Family, transformations
from polymodal.training.run import answers, embed
from polymodal.types import Batch

MAX_IMAGES = 100  # of a split, each with up to 43 queries
MAX_VALIDATION_IMAGES = 40
MAX_QUESTIONS = 400  # images of a split with their questions


@runtime_checkable
class EmbedsComposed(Protocol):
    """Capability: one L2-normalized vector of an image and a text together, comparable with those of `embed`."""

    def embed(self, batch: Batch) -> dict[str, Tensor]: ...

    def embed_composed(self, batch: Batch) -> Tensor: ...


def transformed(image: Pixels, family: Family, number: int) -> list[Pair]:
    """All operations of a family on an image as pairs. number: of the image, which seeds their order and factors."""
    made = transformations(image, family, EVALUATED[family], np.random.default_rng(number))
    return [Pair(Side(one.source, one.instruction), Side(one.target)) for one in made]


def similarities(
    method: nn.Module, processor: Processor, groups: Sequence[Sequence[Pair]]
) -> list[tuple[Tensor, Tensor]]:
    """Of each group, the similarity of every query to the distinct targets of the group, and which of them is right."""
    pairs = [pair for group in groups for pair in group]
    columns: dict[str, list[Any]] = {
        "image": [pair.left.image for pair in pairs],
        "text": [pair.left.text for pair in pairs],
    }
    queries = torch.cat(answers(method, processor, "embed_composed", columns))
    targets = embed(method, processor, image=[pair.right.image for pair in pairs])["image"]
    results, start = [], 0
    for group in groups:
        rows_of_group = slice(start, start + len(group))
        numbers: dict[bytes, int] = {}
        of_query = [
            numbers.setdefault(np.ascontiguousarray(pair.right.image).tobytes(), len(numbers)) for pair in group
        ]
        first = torch.tensor([start + of_query.index(number) for number in range(len(numbers))])
        results.append((queries[rows_of_group] @ targets[first].T, torch.tensor(of_query)))
        start = rows_of_group.stop
    return results


def first_place(similarity: Tensor, right: Tensor) -> np.ndarray:
    """Return whether the right target of each query is more similar than all others; a tie is wrong."""
    best = similarity.gather(1, right[:, None])
    return ((similarity >= best).sum(1) == 1).float().numpy()


def recall_of_groups(results: Sequence[tuple[Tensor, Tensor]]) -> dict[int, np.ndarray]:
    """R@1 and chance, averaged over the queries of a group, by its number; groups of one candidate are left out."""
    return {
        number: np.array([first_place(similarity, right).mean(), 1 / similarity.shape[1]])
        for number, (similarity, right) in enumerate(results)
        if similarity.shape[1] > 1
    }


def recall(name: str, groups: Iterable[np.ndarray]) -> list[Score]:
    """R@1, with groups as the unit; none without any. groups: R@1 and chance of each."""
    values = np.array([*groups])
    return [Score(f"{name}/R@1", values[:, 0], float(values[:, 1].mean()))] if len(values) else []


def transformation_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, max_images: int = MAX_IMAGES
) -> list[Score]:
    """Text-guided image transformation retrieval (TGIT): R@1 by family, and over the families of each image.

    An operation that leaves an image as it is, such as grayscale of a gray one, is left out for this image.
    """
    rows, examples = reader.read_split(split, max_images)
    images = list(zip(rows.tolist(), [example["image"] for example in examples], strict=True))
    scores, of_image = [], defaultdict[int, list[np.ndarray]](list)
    for family in FAMILIES:
        groups = [transformed(image, family, row) for row, image in images]
        results = recall_of_groups(similarities(method, processor, groups))
        scores += recall(f"{split}/tgit/{family}", results.values())
        for number, value in results.items():
            of_image[number].append(value)
    return [*recall(f"{split}/tgit", [np.mean(values, axis=0) for values in of_image.values()]), *scores]


def region_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """R@1 among the crops of an image: by place, 'the left object' (OI-Pos), and by name (VG-Crop)."""
    if "regions" not in processor.columns or "regions" in processor.unread:
        return []
    _, examples = reader.read_split(split, MAX_QUESTIONS)
    by_place, by_name = [], []
    for example in examples:
        regions = example.get("regions", ())
        places = {text for text, _ in positional(regions)}
        pairs = region_pairs(example["image"], regions, np.random.default_rng(0))
        named = [pair for pair in pairs if pair.left.text not in places]
        by_name.append(named)
        # All crops of the image are candidates: those by place are among those by name.
        by_place.append([pair for pair in pairs if pair.left.text in places] + named if places else [])
    scores = []
    for name, groups, count in (("oi_pos", by_place, 2), ("vg_crop", by_name, None)):
        kept = [group for group in groups if len(group) > 1]
        if kept:
            results = [(one[:count], right[:count]) for one, right in similarities(method, processor, kept)]
            scores += recall(f"{split}/{name}", recall_of_groups(results).values())
    return scores


def question_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """VQA as retrieval: the answer is sought among all answers of the split to questions of the same kind."""
    if "questions" not in processor.columns or "questions" in processor.unread:
        return []
    _, examples = reader.read_split(split, MAX_QUESTIONS)
    selected = [(n, example["image"], q) for n, example in enumerate(examples) for q in example.get("questions", ())]
    kinds: dict[str, list[str]] = {}
    for _, _, question in selected:
        kinds.setdefault(question.kind, [])
        kinds[question.kind] += [a for a in question.references if a not in kinds[question.kind]]
    selected = [one for one in selected if len(kinds[one[2].kind]) > 1]
    if not selected:
        return []
    columns = {"image": [image for _, image, _ in selected], "text": [question.question for _, _, question in selected]}
    queries = torch.cat(answers(method, processor, "embed_composed", columns))
    texts = sorted({answer for results in kinds.values() for answer in results})
    of_text = dict(zip(texts, embed(method, processor, text=texts)["text"], strict=True))
    right: dict[int, list[float]] = {}
    for query, (number, _, question) in zip(queries, selected, strict=True):
        candidates = kinds[question.kind]
        best = int((torch.stack([of_text[one] for one in candidates]) @ query).argmax())
        right.setdefault(number, []).append(float(candidates[best] in question.references))
    chance = float(np.mean([len({*q.references}) / len(kinds[q.kind]) for _, _, q in selected]))
    return [Score(f"{split}/vqa_retrieval/accuracy", np.array([np.mean(one) for one in right.values()]), chance)]


def scores(inputs: TaskInputs) -> list[Score]:
    """All kinds of composed queries that the corpus has."""
    kinds = (transformation_scores, region_scores, question_scores)
    return [score for kind in kinds for score in inputs.over_test_splits(kind)]


def validate(inputs: TaskInputs) -> list[Score]:
    """Text-guided image transformation retrieval of a few images."""
    method, processor, reader = inputs.method, inputs.processor, inputs.reader
    return transformation_scores(method, processor, reader, "validation", MAX_VALIDATION_IMAGES)


def plot(inputs: TaskInputs) -> Panels:
    """Images with an instruction, and the results of operations of the same family, the most similar first."""
    rows, examples = inputs.test_examples(EXAMPLES)
    families = [FAMILIES[number % len(FAMILIES)] for number in (0, 3, 1, 2)]
    grid: list[list[Panel]] = []
    for row, example, family in zip(rows.tolist(), examples, families, strict=False):
        group = transformed(example["image"], family, row)
        similarity, right = similarities(inputs.method, inputs.processor, [group])[0]
        of_target = [right.tolist().index(number) for number in range(similarity.shape[1])]
        line = [image_panel(example["image"], clipped(group[0].left.text, 26, 3))]
        for place, number in enumerate(similarity[0].argsort(descending=True, stable=True)[:TOP].tolist(), start=1):
            target = group[of_target[number]].right.image
            line.append(image_panel(target, f"rank {place}", number == int(right[0])))
        grid.append(line)
    return Panels(grid, "Image and instruction, and the most similar results; green: correct", [1.6, *[1.0] * TOP])


task = Task(
    capability=EmbedsComposed,
    requires=((Image,),),
    order=86,
    score=scores,
    validate=validate,
    plot=plot,
    metrics=METRICS | {"accuracy": MetricKind()},
    headline=("tgit/R@1", "oi_pos/R@1", "vg_crop/R@1", "vqa_retrieval/accuracy"),
    forward_methods=("embed", "embed_composed"),
)
