"""Few labelled rows, balanced over classes, and their endless order: what few-shot training learns from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError


def rows_with_label(corpus: Corpus, split: str = "train") -> Int[np.ndarray, " rows"]:
    """Return the rows of a split that have the label of the corpus."""
    assert corpus.label is not None
    return rows_with(corpus, [corpus.label], split)


def rows_with(corpus: Corpus, columns: Sequence[str], split: str = "train") -> Int[np.ndarray, " rows"]:
    """Return the rows of a split that have a value in all of these columns."""
    rows = corpus.rows(split)
    return rows[corpus.has(*columns)[rows]]


def check_labels(corpus: Corpus) -> None:
    """Raise UserError without a labelled training row, and for shards and mixtures, whose order is their own."""
    if type(corpus).parts is not Corpus.parts:
        raise UserError(f"'{corpus.name}' is read in an order of its own; put all rows into one table.{corpus.hint}")
    if not len(rows_with_label(corpus)):
        raise UserError(f"No training example of '{corpus.name}' has a {corpus.label} to learn from.{corpus.hint}")


def few_shot_rows(
    rows: Int[np.ndarray, " rows"], labels: Sequence[Any], count: int, seed: int
) -> Int[np.ndarray, " selected"]:
    """Select rows at random, as many of each class as of any other, up to one; a smaller class gives all that it has.

    labels: of the rows. count: of all rows together; 0: all. Of the same seed, fewer rows are among the more.
    Raises UserError for fewer rows than classes, of which some would be missing.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    names = np.unique([str(label) for label in labels], return_inverse=True)[1]
    classes = len(np.unique(names))
    if not count or count >= len(rows):
        return rows[order]
    if count < classes:
        raise UserError(f"{count} labelled examples are less than one for each of the {classes} classes; take more.")
    # The n-th row of each class comes before the (n + 1)-th of any.
    turn = np.zeros(len(rows), dtype=np.int64)
    for one in range(classes):
        turn[names[order] == one] = np.arange((names == one).sum())
    return rows[order[np.argsort(turn, kind="stable")][:count]]


class FewShotOrder(Sequence):
    """An endless order with random access of few rows, sampled by the seed and shuffled in every pass."""

    def __init__(self, rows: Int[np.ndarray, " rows"], labels: Sequence[Any], count: int, seed: int):
        """rows, labels, count, seed: see `few_shot_rows`."""
        self.rows = few_shot_rows(rows, labels, count, seed)
        self.seed = seed
        self._pass: tuple[int, np.ndarray] = (-1, self.rows)  # the last one that was read, and its order

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        number, place = divmod(int(index), len(self.rows))
        current, order = self._pass
        if current != number:
            order = np.random.default_rng([self.seed, number]).permutation(self.rows)
            self._pass = number, order
        return order[place]
