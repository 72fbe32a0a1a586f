"""Labelled pairs of posts, the scores by which a threshold tells duplicates, and ranks of duplicates in an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from polymodal.corpora.bm25 import BM25
from polymodal.data.columns.thread import ThreadExample
from polymodal.evaluation.statistics import Score
from polymodal.modalities.thread import DUPLICATE, LABELS, Thread


class LabelledPairs(NamedTuple):
    """Pairs of posts. labels: indices into `modalities.thread.LABELS`."""

    first: list[Thread]
    second: list[Thread]
    labels: Int[np.ndarray, " pairs"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def duplicate(self) -> Int[np.ndarray, " pairs"]:
        """1 for duplicates, 0 for all others, as in the label map of MQDD."""
        return (self.labels == DUPLICATE).astype(np.int64)

    def take(self, numbers: np.ndarray) -> LabelledPairs:
        first, second = ([side[number] for number in numbers.tolist()] for side in (self.first, self.second))
        return LabelledPairs(first, second, self.labels[numbers])


def labelled_pairs(examples: Sequence[ThreadExample]) -> LabelledPairs:
    """Return all pairs whose first post is one of the examples."""
    pairs = [(example.thread, link) for example in examples for link in example.linked]
    labels = np.array([link.label for _, link in pairs], np.int64)
    return LabelledPairs([first for first, _ in pairs], [link.thread for _, link in pairs], labels)


def balanced(pairs: LabelledPairs) -> LabelledPairs:
    """Return all N duplicates, and at most N // 3 pairs of each kind of negatives, always the same (MQDD, section 4).

    Without duplicates, and where no kind of negatives has so many, all of them are kept.
    """
    count = int(pairs.duplicate.sum())
    rng, chosen = np.random.default_rng(0), [np.flatnonzero(pairs.labels == DUPLICATE)]
    for label in range(1, len(LABELS)):
        numbers = np.flatnonzero(pairs.labels == label)
        chosen.append(rng.permutation(numbers)[: count // (len(LABELS) - 1) or len(numbers)] if count else numbers)
    return pairs.take(np.sort(np.concatenate(chosen)))


def best_threshold(scores: Float[np.ndarray, " pairs"], duplicate: Int[np.ndarray, " pairs"]) -> float:
    """Return the threshold, at or above which pairs are duplicates, of the highest macro F1."""
    order = np.argsort(-scores, kind="stable")
    right, count = np.cumsum(duplicate[order]), np.arange(1, len(scores) + 1)
    positives, total = int(duplicate.sum()), len(scores)
    # F1 of both classes if the first `count` pairs in the order are taken for duplicates.
    f1 = 2 * right / (count + positives)
    negatives = total - positives - (count - right)
    other = 2 * negatives / np.maximum(total - count + total - positives, 1)
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    best = int(np.argmax(np.where(last_of_equal, f1 + other, -1)))
    return float(scores[order][best])


def length_scores(pairs: LabelledPairs) -> Float[np.ndarray, " pairs"]:
    """Return minus the difference of the lengths in characters: what length alone says."""
    sizes = [[sum(map(len, thread.post)) for thread in side] for side in (pairs.first, pairs.second)]
    return -np.abs(np.log1p(sizes[0]) - np.log1p(sizes[1]))


def bm25_scores(pairs: LabelledPairs) -> Float[np.ndarray, " pairs"]:
    """Return the BM25 score of each second post for the first one, relative to that of the first one for itself.

    Scores grow with the length of the query, so that without this, one threshold would not fit all.
    """
    first, second = ([" ".join(thread.post) for thread in side] for side in (pairs.first, pairs.second))
    index = BM25([*second, *first])
    each = [index.scores(query)[[number, len(first) + number]] for number, query in enumerate(first)]
    return np.array([score / itself if itself else 0.0 for score, itself in each])


def duplicate_ranks(
    similarity: Float[np.ndarray, "queries candidates"],
    queries: Int[np.ndarray, " queries"],
    relevant: Bool[np.ndarray, "queries candidates"],
) -> Int[np.ndarray, " queries"]:
    """Return the rank, from 1, of the first duplicate of each query, which is no candidate itself.

    queries: the number of each query among the candidates. A candidate as similar as the duplicate counts as before it,
    and so does one whose similarity is NaN.
    """
    candidate = np.ones_like(relevant)
    candidate[np.arange(len(queries)), queries] = False
    right = relevant & candidate
    best = np.where(right & ~np.isnan(similarity), similarity, -np.inf).max(axis=1, keepdims=True)
    return 1 + (candidate & ~right & ~(similarity < best)).sum(axis=1)


def accuracy_by_kind(name: str, right: Bool[np.ndarray, " pairs"], labels: np.ndarray) -> list[Score]:
    """Return the fraction of the pairs of each kind that is classified right."""
    values = right.astype(float)
    return [
        Score(f"{name}/{kind}/accuracy", values[labels == label], 0.5)
        for label, kind in enumerate(LABELS)
        if (labels == label).any()
    ]
