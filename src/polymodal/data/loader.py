"""Examples to batches: an order from a seed, decoding ahead of the step, exact state (Grain).

An image is decoded once and kept while memory allows. An example that cannot be read is replaced, counted and named.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any

import numpy as np
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.data._grain import grain
from polymodal.data.batch_order import batch_order
from polymodal.data.processor import Processor
from polymodal.errors import TOO_MANY, UnreadableExample, UserError, check_resources, one_line
from polymodal.files import raise_open_files
from polymodal.modalities import Text
from polymodal.rng import ExampleRNG
from polymodal.types import Batch, Example

MEMORY_FOR_EXAMPLES = 4 * 2**30
MAX_SKIPPED = 0.1
OPEN_FILES, FILES_PER_WORKER = 32, 4  # file descriptors that --num-workers need: in all, and by each process
GRACE = 10.0  # seconds in which torch notices a killed process by itself


class Reader:
    """Reads rows of a corpus through a processor. skipped: key -> why, for what could not be read."""

    def __init__(self, corpus: Corpus, processor: Processor, memory: int = MEMORY_FOR_EXAMPLES):
        self.corpus = corpus
        self.processor = processor
        self.skipped: dict[str, str] = {}
        self._kept: dict[int, Example | None] = {}
        self._room = memory if corpus.keeps_decoded else 0

    def load_example(self, row: int) -> Example | None:
        """The example, or None when it is unreadable."""
        if row in self._kept:
            return self._kept[row]
        try:
            example = self.processor.load_example(self.corpus, row)
            cost = _bytes_of(list(example.values()))
        except UnreadableExample as reason:
            self.skipped[self.corpus.key(row)] = str(reason)
            example, cost = None, 0
        if cost <= self._room:
            self._room -= cost
            self._kept[row] = example
        return example

    def share_memory(self, readers: int) -> None:
        """Keep no more than one of so many readers may, which have the same memory together."""
        self._room //= readers

    def read_all(self, rows: np.ndarray) -> tuple[np.ndarray, list[Example]]:
        """The readable ones among the rows, with their row numbers."""
        examples = {row: self.load_example(row) for row in rows.tolist()}
        readable = {row: example for row, example in examples.items() if example is not None}
        return np.array(list(readable), dtype=np.int64), list(readable.values())

    def read_split(self, split: str, most: int | None = None) -> tuple[np.ndarray, list[Example]]:
        """The readable examples of a split, with their row numbers. most: evenly chosen ones, at most so many.

        Raises UserError when there is none.
        """
        rows, examples = self.read_all(self.corpus.rows(split) if most is None else self.corpus.sample(split, most))
        if not examples:
            raise UserError(f"The split '{split}' of '{self.corpus.name}' has no readable example.{self.corpus.hint}")
        return rows, examples

    def read_labelled(
        self, split: str, label: str, max_examples: int | None = None
    ) -> tuple[np.ndarray, list[Example]]:
        """As `read_split`, only examples that have the label, of which a split may have none."""
        rows, examples = self.read_split(split, max_examples)
        places = np.flatnonzero(self.corpus.has(label)[rows])
        return rows[places], [examples[place] for place in places]

    def check(self) -> None:
        """Raises UserError when more than a tenth of the training examples were unreadable."""
        total = len(self.corpus.rows("train"))
        if len(self.skipped) > max(MAX_SKIPPED * total, 1):
            key, reason = next(iter(self.skipped.items()))
            raise UserError(
                f"{len(self.skipped)} of {total} examples of '{self.corpus.name}' cannot be read, more than a tenth "
                f"(the first: {key}: {reason}); mend or remove them.{self.corpus.hint}"
            )


def _bytes_of(value: Any) -> int:
    """Return the bytes of arrays, those in lists, too, such as the images of a document."""
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    return value.nbytes if isinstance(value, np.ndarray) else 0


MakeBatch = Callable[[list[Example], Processor, ExampleRNG], Batch]


class TrainingData:
    """An endless iterator of one process's share of every batch, as a list of micro-batches.

    Batch number i holds the same examples in the same order for any number of processes and workers, and process p of n
    gets the p-th n-th of it. Where an example is unreadable, the one at its place in the next batch stands in, so that
    batches are always full. Everything follows from the seed and the number of batches taken, which is all the state.
    """

    def __init__(
        self,
        reader: Reader,
        batch_size: int,
        seed: int,
        make_batch: MakeBatch,
        *,
        micro_batch: int = 0,
        process: int = 0,
        processes: int = 1,
        num_threads: int = 0,
        num_workers: int = 0,
        length_bucketing: int = 0,
        length_modality: type = Text,
    ):
        """batch_size: of all processes together, which divide it evenly.

        micro_batch: examples of a micro-batch, which divide the process's share evenly; 0 is all of it.
        num_threads: threads that prepare batches while the step runs; 0 prepares each when it is asked for.
        num_workers: processes that do so in place of threads.
        length_bucketing: batches whose examples are sorted by length together, see `Bucketed`; 0 sorts none.
        length_modality: the modality whose lengths count.

        Raises UserError when the training split does not fill one batch, or has no length to sort by, and for processes
        on a system that has no fork.
        """
        self.reader = reader
        self.seed = seed
        self.make_batch = make_batch
        self.share = batch_size // processes
        self.first = process * self.share
        self.micro_batch = micro_batch or self.share
        self.batch_size = batch_size
        self.order = batch_order(reader.corpus, batch_size, seed, length_bucketing, length_modality)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        self._iterator = (
            _FromProcesses(self, num_workers)
            if num_workers
            else iter(self.order.map_with_index(self._load).to_iter_dataset(options))
        )

    def __next__(self) -> list[Batch]:
        return next(self._iterator)

    def close(self) -> None:
        """End the processes that prepare batches; the next batch starts them again."""
        if isinstance(self._iterator, _FromProcesses):
            self._iterator.close()

    @property
    def taken(self) -> int:
        """How many batches were taken; can be set, to go on from there."""
        return self._iterator.get_state()["next_index"]

    @taken.setter
    def taken(self, batches: int) -> None:
        self._iterator.set_state({"next_index": batches})

    def keys(self, batch: int) -> list[str]:
        """The names of this process's examples in a batch."""
        return [self.reader.corpus.key(row) for row in self._own(self.order[batch])]

    def _own(self, rows: np.ndarray) -> np.ndarray:
        return rows[self.first : self.first + self.share]

    def batch(self, number: int) -> list[Batch]:
        """This process's micro-batches of batch `number`, without taking it."""
        return self._load(number, self.order[number])

    def _load(self, number: int, rows: np.ndarray) -> list[Batch]:
        examples = [self._readable(number, place, row) for place, row in enumerate(self._own(rows).tolist())]
        first = number * self.batch_size + self.first
        return [
            self.make_batch(
                examples[place : place + self.micro_batch],
                self.reader.processor,
                ExampleRNG.of(self.seed, first + place, self.micro_batch),
            )
            for place in range(0, self.share, self.micro_batch)
        ]

    def _readable(self, batch: int, place: int, row: int) -> Example:
        while (example := self.reader.load_example(row)) is None:
            self.reader.check()
            batch += 1
            row = int(self.order[batch][self.first + place])
        return example


Prepared = tuple[list[Batch] | UserError, dict[str, str]]
"""A batch, or why there is none, and what was skipped for the first time (`Reader.skipped`)."""


class _FromProcesses:
    """Batches in their order that processes prepare, each every n-th, with the state of Grain's iterators."""

    def __init__(self, data: TrainingData, count: int):
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UserError("--num-workers need a system with fork, such as Linux; --num-threads N are threads.")
        needed = OPEN_FILES + FILES_PER_WORKER * count
        limit = raise_open_files(needed)
        if limit < needed:  # torch would wait for ever, or end in an error of its own
            raise UserError(
                f"--num-workers {count} need {needed} open files, and the limit is {limit} (ulimit -n): raise it, "
                "or use fewer, or --num-threads."
            )
        self.data = data
        self.count = count
        self._next = 0
        self._prepared: Iterator[Prepared] | None = None

    def __next__(self) -> list[Batch]:
        if self._prepared is None:
            self._prepared = iter(
                torch.utils.data.DataLoader(
                    _Preparation(self.data, self.count),
                    batch_size=None,
                    sampler=itertools.count(self._next),  # it need not end
                    num_workers=self.count,
                    collate_fn=_as_it_is,
                    worker_init_fn=_leave_signals,
                    multiprocessing_context="fork",
                )
            )
            _watch(self._prepared)
        batch, skipped = next(self._prepared)
        self.data.reader.skipped |= skipped
        if isinstance(batch, UserError):
            raise batch
        self._next += 1
        return batch

    def close(self) -> None:
        self._prepared = None  # torch ends them with the iterator

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._next = state["next_index"]


class _Preparation(torch.utils.data.Dataset[Prepared]):
    """What a worker process runs."""

    def __init__(self, data: TrainingData, count: int):
        self.data = data
        self.count = count
        self.said: set[str] | None = None  # of what was skipped, by this process

    def __getitem__(self, number: int) -> Prepared:
        reader = self.data.reader
        if self.said is None:
            reader.share_memory(self.count)
            self.said = set(reader.skipped)
        batch: list[Batch] | UserError
        try:
            batch = self.data.batch(number)
        except UserError as error:
            batch = error
        skipped = {key: why for key, why in reader.skipped.items() if key not in self.said}
        self.said |= skipped.keys()
        return batch, skipped


def _watch(batches: Any) -> None:
    """End all processes of a DataLoader when one has died and the reader may wait for the rest of its batch.

    Half a batch is in the pipe then, and torch, which waits for whole ones, does not look whether processes live. The
    pipe ends when nobody can write into it, so that this process closes its own end of it.
    """
    workers, results = list(batches._workers), batches._worker_result_queue
    results._writer.close()
    iterator = weakref.ref(batches)

    def wait() -> None:
        connection.wait([worker.sentinel for worker in workers])
        time.sleep(GRACE)
        if iterator() is not None:  # the reader has not noticed
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    threading.Thread(target=wait, name="watch of workers", daemon=True).start()


@contextmanager
def killed_workers() -> Iterator[None]:
    """Raise UserError when a process that prepares batches was killed, which torch notices in the midst of a step."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        too_many = TOO_MANY in str(error)
        killed = isinstance(error, ConnectionError | EOFError) or str(error).startswith("DataLoader worker")
        if not (killed or too_many):
            raise
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise the error again, for each that ends
        for worker in multiprocessing.active_children():
            if worker.daemon:  # others may wait for a lock of the killed one, and Python for them when it ends
                worker.kill()
        check_resources(error)
        raise UserError(
            f"A process that prepares batches has ended ({one_line(error)}), as the system ends one when memory is "
            "short; start the same command again to go on from the last checkpoint, with fewer --num-workers."
        ) from error


def _as_it_is(value: Any) -> Any:
    return value


def _leave_signals(worker: int) -> None:
    """What ends a run, such as Ctrl-C, often reaches all of its processes; the one that trains saves and ends the rest.

    It does so by word, and by a second SIGTERM where a process does not listen.
    """
    for name in {"SIGINT", "SIGHUP"} & {*dir(signal)}:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
