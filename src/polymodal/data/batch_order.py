"""The order of examples, from a seed: the row numbers of each batch, without end (Grain)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus, Part
from polymodal.data._grain import grain
from polymodal.errors import UserError
from polymodal.modalities import Text


def batch_order(
    corpus: Corpus, batch_size: int, seed: int, length_bucketing: int = 0, length_modality: type = Text
) -> Any:
    """An endless Grain dataset of the row numbers of each batch, with random access.

    Every epoch has an order of its own and leaves out the remainder that does not fill a batch, so that no example is
    twice in a batch. The parts of a mixture alternate by their weights, each with epochs of its own.
    length_bucketing, length_modality: see `TrainingData`.
    """
    parts = corpus.parts("train")
    total = sum(len(part.rows) for part in parts)
    if total < batch_size:
        raise UserError(
            f"The training split of '{corpus.name}' has {total} examples, less than one batch of "
            f"{batch_size}; take a batch size of {max(2, total // 2)} or less (--batch-size, or batch_size=...)."
        )
    if len(parts) == 1 and parts[0].order is None:
        order = _shuffled(parts[0], seed).batch(batch_size, drop_remainder=True).repeat()
    else:
        endless = [
            _shuffled(part, seed + number).repeat() if part.order is None else grain.MapDataset.source(part.order(seed))
            for number, part in enumerate(parts)
        ]
        order = grain.MapDataset.mix(endless, weights=[part.weight for part in parts]).batch(batch_size)
    if not length_bucketing:
        return order
    lengths = corpus.stored_lengths(corpus.column_with(length_modality))
    return grain.MapDataset.source(Bucketed(order, lengths, length_bucketing, total // batch_size, seed))


def _shuffled(part: Part, seed: int) -> Any:
    return grain.MapDataset.source(part.rows).seed(seed).shuffle()


class Bucketed(Sequence):
    """Batches whose examples have changed places so that those of one batch are about equally long.

    Each `window` batches of an epoch are sorted together, cut again, and put into a random order; in a batch the order
    is random too, so that processes which share it have as much to do as each other.
    """

    def __init__(self, batches: Any, lengths: np.ndarray, window: int, epoch: int, seed: int):
        """batches: row numbers of each, with random access. lengths: of each row. epoch: batches of one."""
        self.batches = batches
        self.lengths = lengths
        self.window = window
        self.epoch = epoch
        self.seed = seed
        self._newest: tuple[int, list[np.ndarray]] | None = None  # the first batch of a window, and all its batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        place = int(index) % self.epoch % self.window
        first = int(index) - place
        newest = self._newest
        if newest is None or newest[0] != first:
            newest = self._newest = first, self._sorted(first)
        return newest[1][place]

    def _sorted(self, first: int) -> list[np.ndarray]:
        count = min(self.window, self.epoch - first % self.epoch)
        rows = np.concatenate([self.batches[first + number] for number in range(count)])
        rng = np.random.default_rng([self.seed, first])
        rows = rng.permutation(rows)  # or else rows of one length would keep the order of the table
        batches = np.split(rows[np.argsort(self.lengths[rows], kind="stable")], count)
        return [rng.permutation(batches[number]) for number in rng.permutation(count)]
