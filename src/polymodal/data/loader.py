"""Examples to batches: an order from a seed, decoding ahead of the step, exact state (Grain).

A picture is decoded once and kept while memory allows. An example that cannot be read is left out, counted and named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

logging.getLogger("absl").setLevel(logging.ERROR)  # grain warns at import that jax, which it can do without, is missing
import grain

from polymodal.corpora import Corpus
from polymodal.errors import UserError
from polymodal.modalities import UnreadableExample
from polymodal.types import Batch, Example, Processor

MEMORY_FOR_EXAMPLES = 4 * 2**30
MOST_SKIPPED = 0.1


class Reader:
    """Reads rows of a corpus through a processor. skipped: key -> why, for what could not be read."""

    def __init__(self, corpus: Corpus, processor: Processor, memory: int = MEMORY_FOR_EXAMPLES):
        self.corpus = corpus
        self.processor = processor
        self.skipped: dict[str, str] = {}
        self._kept: dict[int, Example | None] = {}
        self._room = memory

    def read(self, row: int) -> Example | None:
        """The example, or None when it is unreadable."""
        if row in self._kept:
            return self._kept[row]
        try:
            example = self.processor.read(self.corpus, row)
            cost = sum(value.nbytes for value in example.values() if isinstance(value, np.ndarray))
        except UnreadableExample as reason:
            self.skipped[self.corpus.key(row)] = str(reason)
            example, cost = None, 0
        if cost <= self._room:
            self._room -= cost
            self._kept[row] = example
        return example

    def read_all(self, rows: np.ndarray) -> tuple[np.ndarray, list[Example]]:
        """The readable ones among the rows, with their row numbers."""
        examples = {row: self.read(row) for row in rows.tolist()}
        readable = {row: example for row, example in examples.items() if example is not None}
        return np.array(list(readable), dtype=np.int64), list(readable.values())

    def check(self, total: int) -> None:
        """Raises UserError when more than a tenth of `total` examples were unreadable."""
        if len(self.skipped) > max(MOST_SKIPPED * total, 1):
            key, reason = next(iter(self.skipped.items()))
            raise UserError(
                f"{len(self.skipped)} of {total} examples of '{self.corpus.name}' cannot be read, more than a tenth "
                f"(the first: {key}: {reason}); mend or remove them."
            )


MakeBatch = Callable[[list[Example], Processor, np.random.Generator], Batch]


def training_batches(
    reader: Reader, rows: np.ndarray, batch_size: int, seed: int, make_batch: MakeBatch, ahead: int = 0
) -> Any:
    """An endless Grain iterator of batches, with `get_state` and `set_state`.

    ahead: how many batches a thread prepares while the step runs; 0 prepares each when it is asked for.

    Every epoch has an order of its own and leaves out the remainder that does not fill a batch, so that no example is
    twice in a batch. Raises UserError when the rows do not fill one batch.
    """
    if len(rows) < batch_size:
        raise UserError(
            f"The training split of '{reader.corpus.name}' has {len(rows)} examples, less than one batch of "
            f"{batch_size}; use --batch-size {max(2, len(rows) // 2)} or less."
        )

    def load(rows: np.ndarray, rng: np.random.Generator) -> Batch:
        _, examples = reader.read_all(rows)
        if not examples:
            reader.check(0)
        return make_batch(examples, reader.processor, rng)

    order = grain.MapDataset.source(rows).seed(seed).shuffle().batch(batch_size, drop_remainder=True)
    batches = order.repeat().random_map(load)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=min(ahead, 1), prefetch_buffer_size=ahead)))
