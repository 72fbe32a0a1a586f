"""Winoground: two images and two captions of the same words, each of which is true of one image."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.compositional_foils import minimal_pairs
from polymodal.errors import UnreadableExample
from polymodal.evaluation.capabilities import CanEmbed, CanScorePairs, HasLikelihood
from polymodal.evaluation.embeddings import first_captions
from polymodal.evaluation.pair_scores import (
    PairScorer,
    ScoredPairs,
    item_values,
    matching_protocol,
    sampled,
    strictly_greater,
)
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Text

MAX_PAIRS = 400  # of a split, as many as Winoground has
MIN_PAIRS = 8  # of a split that is scored
CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}  # of scores at random


def winoground_scores(inputs: TaskInputs) -> list[Score]:
    """Text, image and group score (Thrush et al. 2022, section 3.3) by each score of the method; ties are wrong.

    The unit is a pair of examples whose captions have the same letters in another order. A score that does not depend
    on the image, such as the prior, has 0, not chance.
    """
    return [score for split in inputs.test_splits for score in _split_scores(inputs, split)]


def _split_scores(inputs: TaskInputs, split: str) -> list[Score]:
    rows, captions = _captions(inputs.corpus, split)
    chosen = sampled(np.array(minimal_pairs(captions), dtype=np.int64).reshape(-1, 2), MAX_PAIRS)
    readable, examples = inputs.reader.read_all(rows[chosen.ravel()])
    number_of = {row: number for number, row in enumerate(readable.tolist())}
    kept = [pair for pair in rows[chosen].tolist() if {*pair} <= number_of.keys()]
    items = [tuple(number_of[row] for row in pair) for pair in kept]
    if len(items) < MIN_PAIRS:
        return []
    captions = first_captions(inputs.corpus, examples)
    # For each item: image 0 with captions 0 and 1, image 1 with captions 0 and 1.
    images = [examples[row]["image"] for pair in items for row in pair]
    pairs = ScoredPairs.of(images, [[captions[row] for row in pair] for pair in items for _ in pair])
    scorer, scores = PairScorer(inputs, pairs), []
    for metric, chance in CHANCE.items():
        for name, values in item_values(scorer, partial(_metric, metric)).items():
            place = f"{split}/winoground/{name}" if name else f"{split}/winoground"
            if name != "alpha":
                scores.append(Score(f"{place}/{metric}", values, chance))
            elif metric == "text":
                scores.append(Score(place, values))
    return scores


def _captions(corpus: Corpus, split: str) -> tuple[np.ndarray, list[str]]:
    """All rows of a split that have a caption, and their first ones, read without the images."""
    column = corpus.column_with(Text)
    modality = corpus.columns[column]
    assert isinstance(modality, Text)
    captions = {}
    for row in corpus.rows(split).tolist():
        with suppress(UnreadableExample):
            captions[row] = modality.in_main_language(corpus.value(row, column))[0].text
    return np.array(list(captions), dtype=np.int64), list(captions.values())


def _metric(metric: str, scores: np.ndarray) -> np.ndarray:
    return winoground(scores)[metric]


def winoground(scores: np.ndarray) -> dict[str, np.ndarray]:
    """The values of the items. scores: s(c0, i0), s(c1, i0), s(c0, i1), s(c1, i1) of each item in turn."""
    c0_i0, c1_i0, c0_i1, c1_i1 = scores.reshape(-1, 4).T
    text = strictly_greater(c0_i0, c1_i0) & strictly_greater(c1_i1, c0_i1)
    image = strictly_greater(c0_i0, c0_i1) & strictly_greater(c1_i1, c1_i0)
    return {name: one.astype(float) for name, one in (("text", text), ("image", image), ("group", text & image))}


task = Task(
    capability=CanEmbed | CanScorePairs | HasLikelihood,
    requires=((Image, Text),),
    order=23,
    score=winoground_scores,
    metrics={
        "alpha": MetricKind(),
        "text": MetricKind(),
        "image": MetricKind(),
        "group": MetricKind(),
    },
    headline=(
        "winoground/text",
        "winoground/image",
        "winoground/group",
        "winoground/alpha_cross_fitted/text",
        "winoground/itm/text",
        "winoground/itc/text",
    ),
    forward_methods=(),
    protocol=matching_protocol,
)
