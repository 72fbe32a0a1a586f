"""Orders of rows for losses that compare the classes of a batch: m rows of a class next to each other.

NoReplacementMPerClassSampler and the hard-negative groups of CLIPPINGS (Arora et al. 2023, released code).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError


def rows_by_class(corpus: Corpus) -> list[np.ndarray]:
    """Return the training rows of each class that has any.

    Raises UserError where no class has two rows, and for shards and mixtures, which have an order of their own.
    """
    assert corpus.label is not None
    if type(corpus).parts is not Corpus.parts:
        raise UserError(
            f"'{corpus.name}' is read in an order of its own, so that batches cannot have several rows of a class; put "
            f"all rows into one table, or train without labels (--self-supervised-fraction 1).{corpus.hint}"
        )
    rows = corpus.rows("train")
    labels = np.array(corpus.raw_values(rows, corpus.label), dtype=object)
    classes = [rows[labels == name] for name in sorted({name for name in labels if name is not None})]
    if all(len(one) < 2 for one in classes):
        raise UserError(
            f"No two training rows of '{corpus.name}' have the same {corpus.label}, so there is nothing to link; "
            f"label records of one thing alike, or train without labels (--self-supervised-fraction 1).{corpus.hint}"
        )
    return classes


class ClassOrder(Sequence):
    """An endless order with random access: groups of classes, one after the other, with m rows of each class.

    A pass has every group once, in an order of its own, without what does not fill a batch. A class gives other rows
    each time until all have been there (no replacement). One with fewer than m rows repeats them.
    """

    def __init__(
        self,
        classes: Sequence[np.ndarray],
        m: int,
        batch_size: int,
        seed: int,
        groups: Int[np.ndarray, "groups k"] | None = None,
    ):
        """classes: rows of each. groups: classes that are to be in one batch, -1 for none; by default each class alone.

        Raises UserError where a pass does not fill a batch.
        """
        self.classes = classes
        self.m = m
        self.seed = seed
        self.groups = np.arange(len(classes))[:, None] if groups is None else groups
        flat = self.groups[self.groups >= 0]
        self.visits = np.bincount(flat, minlength=len(classes))
        self.length = m * len(flat) // batch_size * batch_size
        if not self.length:
            raise UserError(
                f"{len(flat)} classes with {m} rows each are less than one batch of {batch_size}; take a --batch-size "
                f"of {m * len(flat)} or less that {m} divides."
            )
        self._newest: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        number, place = divmod(int(index), self.length)
        newest = self._newest
        if newest is None or newest[0] != number:
            newest = self._newest = number, self._pass(number)
        return newest[1][place]

    def _pass(self, number: int) -> Int[np.ndarray, " rows"]:
        visits = number * self.visits
        rows: list[np.ndarray] = []
        for group in np.random.default_rng([self.seed, number]).permutation(len(self.groups)):
            for one in self.groups[group][self.groups[group] >= 0].tolist():
                rows.append(self._rows(one, int(visits[one])))
                visits[one] += 1
        return np.concatenate(rows)[: self.length]

    def _rows(self, one: int, visit: int) -> Int[np.ndarray, " m"]:
        """The rows of a class at one of its visits."""
        rows = self.classes[one]
        cycle, block = divmod(visit, -(-len(rows) // self.m))
        order = np.random.default_rng([self.seed, one, cycle, 1]).permutation(rows)
        # The last block of a cycle is filled with rows that it has already had.
        return np.resize(np.roll(order, -block * self.m), self.m)


def hard_negative_groups(
    vectors: Float[Tensor, "rows dim"], labels: Int[np.ndarray, " rows"], k: int
) -> Int[np.ndarray, "rows k"]:
    """Return for each record the classes among its k nearest neighbors, itself included, each once, and then -1.

    vectors: L2-normalized. labels: numbers of classes.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(k, len(vectors)), metric="cosine", algorithm="brute").fit(vectors.numpy())
    neighbors = index.kneighbors(vectors.numpy(), return_distance=False)
    groups = np.full((len(vectors), k), -1)
    for row, of_row in enumerate(neighbors):
        classes = list(dict.fromkeys(labels[of_row].tolist()))
        groups[row, : len(classes)] = classes
    return groups
