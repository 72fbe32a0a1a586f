"""Completeness: captions that name all objects of an image against captions that leave one out, or name one only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UnreadableExample
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task
from polymodal.modalities import Image, Regions, Text
from polymodal.training.run import embed

MAX_IMAGES = 400  # of a split
KINDS = ("without_one", "one_only", "with_absent")


def listed(names: Sequence[str]) -> str:
    """Compose a caption of names: 'a small cat, a large bus and a large pear'."""
    *first, last = (f"a {name}" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def worse_captions(names: Sequence[str], absent: str, position: int) -> dict[str, list[str]]:
    """Return captions that fit an image less than the one of all its names, by kind.

    without_one: all but one of them; one_only: each alone (Chen et al. 2023, FDT: partially matched captions);
    with_absent: all, and one that the image does not show, at this position. The last tells whether a method
    prefers long captions.
    """
    return {
        "without_one": [listed([*names[:out], *names[out + 1 :]]) for out in range(len(names))],
        "one_only": [listed([name]) for name in names],
        "with_absent": [listed([*names[:position], absent, *names[position:]])],
    }


def completeness_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Return how often an image is more similar to the caption of all its objects than to a worse one; a tie is wrong.

    The unit is an image with at least two names.
    """
    corpus, rng = reader.corpus, np.random.default_rng(0)
    rows, examples = reader.read_split(split, MAX_IMAGES)
    column = corpus.column_with(Regions)
    names = [_names(corpus, row, column) for row in rows.tolist()]
    every = sorted({name for of_image in names for name in of_image})
    shown, complete, worse = [], [], []
    for example, of_image in zip(examples, names, strict=True):
        others = [name for name in every if name not in of_image]
        if len(of_image) > 1 and others:
            shown.append(example["image"])
            complete.append(listed(of_image))
            absent = others[int(rng.integers(len(others)))]
            worse.append(worse_captions(of_image, absent, int(rng.integers(len(of_image) + 1))))
    if not shown:
        return []
    texts = sorted({*complete, *(text for kinds in worse for some in kinds.values() for text in some)})
    vectors = embed(method, processor, image=shown, text=texts)
    of_text = dict(zip(texts, vectors["text"], strict=True))
    scores = []
    for kind in KINDS:
        values = []
        for image, full, kinds in zip(vectors["image"], complete, worse, strict=True):
            partial = torch.stack([of_text[text] for text in kinds[kind]])
            values.append((of_text[full] @ image > partial @ image).float().mean().item())
        scores.append(Score(f"{split}/completeness/{kind}/accuracy", np.array(values), 0.5))
    return scores


def _names(corpus: Corpus, row: int, column: str) -> list[str]:
    """The different names of an image's regions; none where it has no regions, or they are damaged."""
    try:
        return [name for name in dict.fromkeys(region.name for region in corpus.value(row, column)) if name]
    except UnreadableExample:
        return []


task = Task(
    capability=CanEmbed,
    requires=((Image, Text, Regions),),
    order=85,
    score=lambda inputs: inputs.over_test_splits(completeness_scores),
    metrics={"accuracy": MetricKind()},
    headline=("completeness/without_one/accuracy",),
    forward_methods=("embed",),
)
