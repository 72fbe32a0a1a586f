"""Compositional foils: a caption against the same words in another order, or with attributes or roles exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polymodal.data.compositional_foils import KINDS, compositional_foils
from polymodal.errors import UnreadableExample
from polymodal.evaluation.capabilities import CanEmbed, CanScorePairs, HasLikelihood
from polymodal.evaluation.caption_prior import two_priors
from polymodal.evaluation.embeddings import first_captions
from polymodal.evaluation.pair_scores import (
    PairScorer,
    ScoredPairs,
    item_values,
    matching_protocol,
    sampled,
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
from polymodal.evaluation.tasks.score_prediction import srcc
from polymodal.modalities import Image, Regions, Text
from polymodal.types import Example

MAX_EXAMPLES = 200  # of a split, so that methods that read every pair take no more than about 8,000 readings
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

    captions = zip(rows.tolist(), first_captions(inputs.corpus, examples), strict=True)
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
    rows, examples = inputs.reader.read_all(sampled(inputs.corpus.rows(split), MAX_EXAMPLES))
    described = foils_of(inputs, rows, examples)
    kinds = [kind for kind in KINDS if sum(kind in foils for _, foils in described) >= MIN_ITEMS]
    if not kinds:
        return []
    # The caption of an image is scored once, for all kinds.
    used = [number for number, (_, foils) in enumerate(described) if {*kinds} & foils.keys()]
    images, described = [examples[number]["image"] for number in used], [described[number] for number in used]
    texts = [[caption, *(text for kind in kinds for text in foils.get(kind, ()))] for caption, foils in described]
    scorer = PairScorer(inputs, ScoredPairs.of(images, texts))
    scores = []
    for kind in kinds:
        scores += _kind_scores(scorer, f"{split}/foils/{kind}", *_places(described, kinds, kind))
    if isinstance(inputs.method, HasLikelihood):
        compared = [[caption, *foils.get("order", ())] for caption, foils in described[:MAX_COMPARED]]
        priors = two_priors(inputs, [text for some in compared for text in some], images)
        if priors is not None:
            unit = np.repeat(np.arange(len(compared)), [len(some) for some in compared])
            scores.append(rank_correlation(f"{split}/foils/prior/rank_correlation", *priors, unit))
    return scores


def _places(
    described: Sequence[tuple[str, dict[str, list[str]]]], kinds: Sequence[str], wanted: str
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pairs of a kind, of each image the caption and then its foils; and how many each image has."""
    places, counts, start = [], [], 0
    for _, foils in described:
        sizes = {kind: len(foils.get(kind, ())) for kind in kinds}
        first = start + 1 + sum(sizes[kind] for kind in kinds[: kinds.index(wanted)])
        if sizes[wanted]:
            places += [start, *range(first, first + sizes[wanted])]
            counts.append(1 + sizes[wanted])
        start += 1 + sum(sizes.values())
    return np.array(places), np.array(counts)


def rank_correlation(name: str, values: np.ndarray, others: np.ndarray, unit: np.ndarray) -> Score:
    """Spearman's correlation, 0 where either is constant; its interval is by leaving out units. unit: of each value."""
    left_out = np.array([srcc(values[unit != one], others[unit != one]) for one in np.unique(unit)])
    return Score.from_jackknife(name, srcc(values, others), left_out, 0.0)


def _kind_scores(scorer: PairScorer, name: str, places: np.ndarray, counts: np.ndarray) -> list[Score]:
    """Of each image with its caption and its foils. places, counts: see `_places`."""
    chance = float(np.mean(1 / counts))
    values = item_values(scorer, lambda scores: first_is_best(scores[places], counts))
    return [
        Score(f"{name}/alpha", one)
        if kind == "alpha"
        else Score(f"{name}/{kind}/accuracy" if kind else f"{name}/accuracy", one, chance)
        for kind, one in values.items()
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
