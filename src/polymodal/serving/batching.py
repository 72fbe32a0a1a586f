"""Dynamic batching of requests of many clients: a bounded queue in front of one computing thread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """The queue is full."""


class DeadlineExceeded(Exception):
    """The deadline passed before the answer was there."""


@dataclass
class _Request:
    """Values of one request, which are answered together. kind: only values of one kind form a batch."""

    kind: str
    values: list[Any]
    until: float
    answer: asyncio.Future[list[Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class MicroBatcher:
    """Batches values while the previous batch is computed, or within a short delay when idle.

    compute: maps a kind and values to one answer per value; runs in one thread. largest: maximum batch size. patience:
    seconds that a first value waits for others. room: maximum number of queued values; beyond them `ask` raises
    QueueFull.
    """

    def __init__(
        self,
        compute: Callable[[str, list[Any]], list[Any]],
        max_batch_size: int = 64,
        patience: float = 0.002,
        queue_size: int = 1024,
        computed: Callable[[int], None] = lambda size: None,
        alone: Collection[str] = (),
    ):
        """Build the batcher. computed: callback for the size of every batch. alone: kinds whose requests are
        computed separately."""
        self.compute = compute
        self.max_batch_size = max_batch_size
        self.patience = patience
        self.queue_size = queue_size
        self.computed = computed
        self.alone = alone
        self.waiting = 0
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start in the running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Answer what is queued, then stop."""
        while self.waiting:
            await asyncio.sleep(0.01)
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._thread.shutdown()

    async def ask(self, kind: str, values: list[Any], seconds: float) -> list[Any]:
        """Return an answer for each value, within so many seconds.

        Raises QueueFull, DeadlineExceeded, or what `compute` raises for these values alone.
        """
        if not values:
            return []
        if self.waiting + len(values) > self.queue_size:
            raise QueueFull
        asked = _Request(kind, values, time.monotonic() + seconds)
        self.waiting += len(values)
        self._queue.put_nowait(asked)
        try:
            return await asyncio.wait_for(asked.answer, seconds)
        except TimeoutError as error:
            raise DeadlineExceeded from error

    async def _work(self) -> None:
        while True:
            batch = await self._gathered()
            for kind, some in self._by_kind(batch):
                await self._answer(kind, some)
            self.waiting -= sum(len(asked.values) for asked in batch)

    async def _gathered(self) -> list[_Request]:
        batch = [await self._queue.get()]
        size, closes = len(batch[0].values), time.monotonic() + self.patience
        while size < self.max_batch_size:
            try:
                asked = self._queue.get_nowait()
            except asyncio.QueueEmpty:
                if (left := closes - time.monotonic()) <= 0:
                    break
                try:
                    asked = await asyncio.wait_for(self._queue.get(), left)
                except TimeoutError:
                    break
            batch.append(asked)
            size += len(asked.values)
        return batch

    async def _answer(self, kind: str, batch: list[_Request]) -> None:
        """Drop requests that were cancelled or timed out."""
        batch = [asked for asked in batch if not asked.answer.done() and asked.until > time.monotonic()]
        values = [value for asked in batch for value in asked.values]
        if not values:
            return
        try:
            answers = await self._in_thread(kind, values)
        except Exception as error:
            if len(batch) > 1:  # one request's values spoil no other's
                for asked in batch:
                    await self._answer(kind, [asked])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        self.computed(len(values))
        left = iter(answers)
        for asked in batch:
            own = [next(left) for _ in asked.values]
            if not asked.answer.done():
                asked.answer.set_result(own)

    async def _in_thread(self, kind: str, values: list[Any]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.compute, kind, values)

    def _by_kind(self, batch: list[_Request]) -> Iterator[tuple[str, list[_Request]]]:
        for kind in dict.fromkeys(asked.kind for asked in batch):
            some = [asked for asked in batch if asked.kind == kind]
            for group in [[asked] for asked in some] if kind in self.alone else [some]:
                yield kind, group


class BoundedThreads:
    """Run calls in a bounded number of threads; a call whose caller has left keeps its thread until it ends.

    threads: maximum number of running calls. room: maximum number of queued calls; beyond them `ask` raises QueueFull.
    """

    def __init__(self, threads: int, room: int):
        self.room = room
        self.waiting = 0
        self._free = asyncio.Semaphore(threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="search")

    async def ask(self, call: Callable[[], T], seconds: float) -> T:
        """Return what `call` returns. Raises QueueFull, DeadlineExceeded after so many seconds, or what `call` raises.

        A TimeoutError of the call is DeadlineExceeded, too.
        """
        if self._free.locked() and self.waiting >= self.room:
            raise QueueFull
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                self.waiting += 1
                try:
                    await self._free.acquire()
                finally:
                    self.waiting -= 1
                work = self._threads.submit(call)
                work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
                return await asyncio.wrap_future(work)
        except TimeoutError as error:
            raise DeadlineExceeded from error

    async def stop(self) -> None:
        """Wait for running calls."""
        await asyncio.to_thread(self._threads.shutdown)
