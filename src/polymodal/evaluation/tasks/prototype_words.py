"""Explanation of recommendations: do the top words of a prototype describe its own top items?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from torch import nn

from polymodal.data.loader import Reader
from polymodal.evaluation.histories import SplitHistories
from polymodal.evaluation.panels import CORRECT, EXAMPLES, NEUTRAL, NOTE, Panels, clipped, text_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import History
from polymodal.training.run import answers
from polymodal.types import Batch

TOP = 10  # items and words of a prototype
PLOTTED, MAX_PLOTTED = 4, 4  # items and words of a prototype, and prototypes, in a plot


@runtime_checkable
class CanExplain(Protocol):
    """Capability: for each user and each of K prototypes, the top items and the top words."""

    def explain(self, batch: Batch, count: int = 5) -> list[list[tuple[list[int], list[str]]]]: ...


def matching_accuracy(
    prototypes: Sequence[tuple[list[int], list[str]]],
    vocabulary: Sequence[str],
    has_word: Bool[np.ndarray, "items words"],
) -> float:
    """Return how often, among the word lists of all prototypes of a user, the prototype's own fits its items best.

    The fit of a word list is the mean number of its words that an item's text has. A tie counts as guessing among the
    best, so that words that are the same for all prototypes have the accuracy 1 / K.
    """
    index = {word: place for place, word in enumerate(vocabulary)}
    words = [[index[word] for word in listed] for _, listed in prototypes]
    fit = np.array([[has_word[np.ix_(items, listed)].mean() for listed in words] for items, _ in prototypes])
    best = fit == fit.max(axis=1, keepdims=True)
    return float((best.diagonal() / best.sum(axis=1)).mean())


def explanation_scores(method: nn.Module, processor: Any, reader: Reader, split: str) -> list[Score]:
    """Return the matching accuracy of each test user; nothing for methods without words, or with one prototype."""
    given = SplitHistories.of(reader, split).given
    explained = list(chain(*answers(method, processor, "explain", {"history": given}, count=TOP)))
    if len(explained[0]) < 2 or not explained[0][0][1]:
        return []
    vocabulary, weights = processor.history.words()
    has_word = weights.numpy() > 0
    accuracy = np.array([matching_accuracy(prototypes, vocabulary, has_word) for prototypes in explained])
    return [Score(f"{split}/prototype_words/matching_accuracy", accuracy, 1 / len(explained[0]))]


def plot(inputs: TaskInputs) -> Panels:
    """Users' latest items, and the top items and words of each of their prototypes."""
    catalogue = inputs.processor.history.catalogue
    given = SplitHistories.of(inputs.reader, inputs.test_splits[0]).given[:EXAMPLES]
    explained = list(chain(*answers(inputs.method, inputs.processor, "explain", {"history": given}, count=PLOTTED)))
    rows = []
    for history, prototypes in zip(given, explained, strict=True):
        latest = [(_title(catalogue, item), NOTE) for item in history[: -PLOTTED - 1 : -1].tolist()]
        panels = [text_panel(latest, "latest items")]
        for number, (items, words) in enumerate(prototypes[:MAX_PLOTTED], start=1):
            lines = [(_title(catalogue, item), NEUTRAL) for item in items]
            panels.append(text_panel([*lines, (", ".join(words), CORRECT)], f"prototype {number}"))
        rows.append(panels)
    return Panels(rows, "Items and words (green) of each user's prototypes", [1.7] * len(rows[0]), 0.7)


def _title(catalogue: Sequence[Any], item: int) -> str:
    return clipped(catalogue[item].title, 24, 1)


task = Task(
    capability=CanExplain,
    requires=((History,),),
    order=175,
    score=lambda inputs: inputs.over_test_splits(explanation_scores),
    plot=plot,
    metrics={"matching_accuracy": MetricKind()},
    headline=("prototype_words/matching_accuracy",),
    forward_methods=("explain",),
)
