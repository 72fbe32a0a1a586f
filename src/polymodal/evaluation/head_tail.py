"""Scores of the head and of the tail of a long-tailed tag, such as the concept, the language or the vendor of a query.

A value's score is the mean over its queries, and a tier's the mean over its values (macro-average), so that frequent
values do not drown rare ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.languages import row_languages
from polymodal.evaluation.statistics import Score
from polymodal.modalities import Category, Text

MAX_COUNTED = 200_000  # training rows that frequencies are counted on
MIN_IMBALANCE, MIN_VALUES = 10, 20  # of a tag whose tail is worth a score
LANGUAGE = "language"


def tag_frequencies(corpus: Corpus, every_row: bool = False) -> dict[str, dict[str, int]]:
    """Return for each categorical column, and for the languages of captions, how often training has each value.

    Values of test splits that training lacks have 0. Only tags with several values. every_row: count all rows, not a
    sample of large corpora.
    """
    tags: dict[str, dict[str, int]] = {}
    rows = corpus.splits.get("train", np.zeros(0, dtype=np.int64))
    if len(rows) and not every_row:
        rows = corpus.sample("train", MAX_COUNTED)
    for name, modality in corpus.columns.items():
        if isinstance(modality, Category):
            tags[name] = _counted([modality.names[value] for value in _decoded(corpus, rows, name)], modality.names)
        elif isinstance(modality, Text) and LANGUAGE not in tags:
            spoken = [language for languages in row_languages(corpus, rows) for language in languages]
            tags[LANGUAGE] = _counted(spoken, modality.language_shares)
    return {name: counts for name, counts in tags.items() if len(counts) > 1}


def _decoded(corpus: Corpus, rows: np.ndarray, column: str) -> Iterator[int]:
    modality = corpus.columns[column]
    return (modality.decode(value) for value in corpus.raw_values(rows, column) if value is not None)


def _counted(values: Sequence[str], names: Any) -> dict[str, int]:
    return dict.fromkeys(names, 0) | Counter(values)


def imbalance(counts: Mapping[str, int]) -> float:
    """Return the largest over the smallest frequency, which counts as at least 1 (imbalance ratio)."""
    return max(counts.values()) / max(min(counts.values()), 1)


def is_long_tailed(counts: Mapping[str, int]) -> bool:
    """Return whether the most frequent value of a tag is ten times as frequent as the rarest."""
    return imbalance(counts) >= MIN_IMBALANCE


def tiers(counts: Mapping[str, int]) -> dict[str, set[str]]:
    """Return the most frequent third of the values, the rarest third, and what is between them.

    A third is rounded down and has one value at least. Equally frequent values are in alphabetical order.
    """
    order = sorted(counts, key=lambda value: (-counts[value], value))
    third = max(len(order) // 3, 1)
    return {"head": {*order[:third]}, "middle": {*order[third:-third]}, "tail": {*order[-third:]}}


def tier_scores(
    name: str,
    metric: str,
    values: np.ndarray,
    tags: Sequence[str],
    unit: np.ndarray,
    units: int,
    counts: Mapping[str, int],
    chance: float | None = None,
) -> list[Score]:
    """Return the macro-average of a metric in the head and in the tail, their difference, and the disparity.

    values, tags, unit: for each query, the metric, the value of the tag and the number of its unit, of `units` in all,
    so that all tiers have the same units. Disparity is the largest minus the smallest mean of a value, where there are
    at most 20 values. A tier without queries has no score.
    """
    members = tiers(counts)
    means = _means_by_value(values, tags)

    def influence(chosen: Collection[str], mean: float) -> np.ndarray:
        return _influence(values, tags, unit, units, chosen, mean)

    scores, macro = [], {}
    for tier in ("head", "tail"):
        if having := members[tier] & means.keys():
            mean = float(np.mean([means[value] for value in having]))
            macro[tier] = mean, influence(having, mean)
            scores.append(Score.from_influence(f"{name}/{tier}/{metric}", *macro[tier], chance))
    if len(macro) == 2:
        (tail, of_tail), (head, of_head) = macro["tail"], macro["head"]
        scores.append(Score.from_influence(f"{name}/tail_minus_head/{metric}", tail - head, of_tail - of_head))
    if 1 < len(means) <= MIN_VALUES:
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        moved = influence({best}, means[best]) - influence({worst}, means[worst])
        gap = means[best] - means[worst]
        scores.append(Score.from_influence(f"{name}/disparity/{metric}", gap, moved, higher_is_better=False))
    return scores


def macro_average(
    name: str, values: np.ndarray, tags: Sequence[str], unit: np.ndarray, units: int, chance: float | None = None
) -> Score:
    """Return the mean over the values of a tag of their mean metrics. values, tags, unit: as in `tier_scores`."""
    means = _means_by_value(values, tags)
    # A unit moves each value's mean by its distance to that mean, as values of a tag are no sample.
    around = np.array([means[tag] for tag in tags])
    mean = float(np.mean([*means.values()]))
    return Score.from_influence(name, mean, _influence(values - around, tags, unit, units, means, 0.0), chance)


def _means_by_value(values: np.ndarray, tags: Sequence[str]) -> dict[str, float]:
    tagged = np.asarray(tags)
    return {value: float(values[tagged == value].mean()) for value in dict.fromkeys(tags)}


def _influence(
    values: np.ndarray, tags: Sequence[str], unit: np.ndarray, units: int, chosen: Collection[str], mean: float
) -> np.ndarray:
    """Return by how much each unit moves the mean of some values of a tag, times the number of units."""
    tagged = np.asarray(tags)
    _, places, sizes = np.unique(tagged, return_inverse=True, return_counts=True)
    queries = np.isin(tagged, sorted(chosen))
    moved = np.bincount(unit[queries], ((values - mean) / sizes[places])[queries], units)
    return units * moved / max(len(chosen), 1)
