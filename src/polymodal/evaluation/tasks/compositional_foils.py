"""Compositional foils: a caption against the same words in another order, or with attributes or roles exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polymodal.data.compositional_foils import KINDS, compositional_foils
from polymodal.errors import UnreadableExample
from polymodal.evaluation.capabilities import CanEmbed, CanScorePairs, HasLikelihood
from polymodal.evaluation.caption_prior import prior_agreement
from polymodal.evaluation.pair_scores import (
    PairScorer,
    ScoredPairs,
    item_values,
    main_captions,
    matching_protocol,
    strictly_greater,
)
from polymodal.evaluation.panels import (
    CORRECT,
    EXAMPLES,
    NEUTRAL,
    NOTE,
    WRONG,
    Line,
    Panels,
    text_panel,
    value_panel,
)
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Regions, Text
from polymodal.types import Example

MAX_EXAMPLES = 200  # of a split
MIN_ITEMS = 8  # of a kind that is scored
MAX_COMPARED = 16  # captions whose prior is estimated in two ways


def foils_of(inputs: TaskInputs, rows: np.ndarray, examples: list[Example]) -> list[tuple[str, dict[str, list[str]]]]:
    """The caption of each example with its foils by kind, which are always the same."""
    corpus = inputs.corpus
    column = corpus.column_with(Regions) if corpus.has_modality(Regions) else None

    def names(row: int) -> list[str]:
        try:
            return [region.name for region in corpus.value(row, column)] if column is not None else []
        except (UnreadableExample, TypeError):  # damaged, or there is none
            return []

    captions = zip(rows.tolist(), main_captions(inputs, examples), strict=True)
    return [
        (caption, compositional_foils(caption, names(row), np.random.default_rng(number)))
        for number, (row, caption) in enumerate(captions)
    ]


def foil_scores(inputs: TaskInputs) -> list[Score]:
    """How often an image goes with its caption rather than with any of the foils, by kind and by score of the method.

    Ties are wrong. The unit is an image; chance is that of the number of foils.
    """
    return [score for split in inputs.test_splits for score in _split_scores(inputs, split)]


def _split_scores(inputs: TaskInputs, split: str) -> list[Score]:
    rows, examples = inputs.reader.read_split(split, MAX_EXAMPLES)
    described = foils_of(inputs, rows, examples)
    scores: list[Score] = []
    for kind in KINDS:
        items = [
            (example["image"], [caption, *foils[kind]])
            for example, (caption, foils) in zip(examples, described, strict=True)
            if kind in foils
        ]
        if len(items) >= MIN_ITEMS:
            scores += _kind_scores(inputs, f"{split}/foils/{kind}", items)
    if scores and isinstance(inputs.method, HasLikelihood):
        some = [text for caption, foils in described[:MAX_COMPARED] for text in (caption, *foils.get("order", ()))]
        agreement = prior_agreement(inputs, some, [example["image"] for example in examples[:1]])
        if agreement is not None:
            scores.append(Score(f"{split}/foils/prior/rank_correlation", agreement, 0.0))
    return scores


def _kind_scores(inputs: TaskInputs, place: str, items: Sequence[tuple[Any, list[str]]]) -> list[Score]:
    """Of each image with its caption and its foils."""
    pairs = ScoredPairs.of([image for image, _ in items], [texts for _, texts in items])
    counts = np.array([len(texts) for _, texts in items])
    chance = float(np.mean(1 / counts))
    values = item_values(PairScorer(inputs, pairs), lambda scores: first_is_best(scores, counts))
    return [
        Score(f"{place}/alpha", one)
        if name == "alpha"
        else Score(f"{place}/{name}/accuracy" if name else f"{place}/accuracy", one, chance)
        for name, one in values.items()
    ]


def first_is_best(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether the first pair of each item scores strictly higher than all of its others. counts: pairs of each item."""
    starts = np.cumsum(counts) - counts
    first = np.repeat(scores[starts], counts)
    better = strictly_greater(first, scores)
    better[starts] = True
    return np.logical_and.reduceat(better, starts).astype(float)


def plot(inputs: TaskInputs) -> Panels:
    """Images with their captions and foils, in the order of the method's last score; green: the caption is first."""
    rows, examples = inputs.test_examples(EXAMPLES)
    described = foils_of(inputs, rows, examples)
    texts = [[caption, *(text for some in foils.values() for text in some)] for caption, foils in described]
    scorer = PairScorer(inputs, ScoredPairs.of([example["image"] for example in examples], texts))
    kind = scorer.kinds[-1]
    values = getattr(scorer, kind) / (scorer.lengths if kind == "likelihood" else 1)
    panels, start = [], 0
    for row, some in zip(rows.tolist(), texts, strict=True):
        of_image = values[start : start + len(some)]
        start += len(some)
        order = np.argsort(-of_image, kind="stable").tolist()
        lines: list[Line] = [(f"{of_image[place]:.2f}  {some[place]}", _color(place, order)) for place in order]
        panels.append(
            [
                value_panel(inputs.corpus, row, inputs.corpus.column_with(Image)),
                text_panel([*lines, (NAMES[kind], NOTE)]),
            ]
        )
    return Panels(panels, "Captions and foils by score; green: the caption before all foils", (1.0, 4.0))


NAMES = {"itc": "similarity", "itm": "matching logit", "likelihood": "log-likelihood per token"}


def _color(place: int, order: list[int]) -> str:
    return NEUTRAL if place else CORRECT if order[0] == 0 else WRONG


task = Task(
    capability=CanEmbed | CanScorePairs | HasLikelihood,
    requires=((Image, Text),),
    order=22,
    score=foil_scores,
    plot=plot,
    metrics={"alpha": MetricKind(), "rank_correlation": MetricKind(is_fraction=False), "accuracy": MetricKind()},
    headline=(
        "foils/*/accuracy",
        "foils/*/alpha_cross_fitted/accuracy",
        "foils/*/itm/accuracy",
        "foils/*/itc/accuracy",
    ),
    forward_methods=(),
    protocol=matching_protocol,
)
