"""Operations of a server on its run: embedding, search and classification within limits, in batches."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import torch

from polymodal.serving.batching import BoundedThreads, MicroBatcher
from polymodal.serving.ending import ended_when
from polymodal.serving.filters import engine_filter
from polymodal.serving.http_errors import HTTPError
from polymodal.serving.index import Hit, Index
from polymodal.serving.limits import Limits, label_texts
from polymodal.serving.request_decoder import RequestDecoder
from polymodal.serving.zero_shot import class_probabilities
from polymodal.training.run import Run

CALL = "call"  # kind of calls that are never batched
SEARCHES = 4  # maximum number of concurrent index searches; LanceDB runs each on several cores


class Service:
    """State of the server: run, index, limits, and metrics."""

    def __init__(self, run: Run, index: Index | None, limits: Limits, batcher: MicroBatcher):
        self.run, self.index, self.limits, self.batcher = run, index, limits, batcher
        self.searches = BoundedThreads(SEARCHES, batcher.queue_size)
        self.ready = False
        self.decoder = RequestDecoder(limits)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the run embeds."""
        return tuple(getattr(self.run.processor, "columns", ("text", "image")))

    async def call(self, what: Callable[[], Any], ends: float) -> Any:
        """Run another computation in the same thread, which ends when its caller leaves or its deadline passes.

        ends: deadline by `time.monotonic`.
        """
        left = threading.Event()

        def call() -> Any:
            with ended_when(lambda: left.is_set() or time.monotonic() > ends):
                return what()

        try:
            (answer,) = await self.batcher.ask(CALL, [call], ends - time.monotonic())
        finally:
            left.set()
        return answer

    async def stream(self, what: Callable[[Callable[[str], None]], str], ends: float) -> AsyncIterator[str]:
        """As `call`, but yield each text that the computation tells while it runs, and what it returns.

        what: called with the function that it tells texts by. The computation ends when the iterator is closed.
        """
        loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        work = asyncio.create_task(self.call(lambda: what(tell), ends))
        work.add_done_callback(lambda _: texts.put_nowait(None))
        try:
            while (text := await texts.get()) is not None:
                yield text
            yield await work
        finally:
            work.cancel()

    async def vectors(self, **columns: list[Any]) -> dict[str, np.ndarray]:
        """Embed texts, and encoded images and sounds (bytes, or base64)."""
        return await self._vectors(columns, self.limits.items)

    async def _vectors(self, columns: dict[str, list[Any]], most_texts: int) -> dict[str, np.ndarray]:
        given = {name: values for name, values in columns.items() if values}
        if not given:
            raise HTTPError(400, "empty", "Give at least one text, image or sound.")
        ends = self.ends
        async with self.decoder.decoded(given, ends, most_texts, self.columns) as decoded:
            parts = [self.batcher.ask(name, values, ends - time.monotonic()) for name, values in decoded.items()]
            return {name: np.stack(part) for name, part in zip(decoded, await asyncio.gather(*parts), strict=True)}

    @property
    def ends(self) -> float:
        """Return the deadline, by `time.monotonic`, of a request that begins now."""
        return time.monotonic() + self.limits.deadline

    async def found(
        self, column: str, value: Any, count: int, where: str | None = None, hybrid: bool = False
    ) -> list[Hit]:
        """Return the examples of the index most similar to a text, an image or a sound, best first.

        where: a client's condition, in the grammar of `serving.filters`. Raises UserError for an invalid one,
        QueueFull, and DeadlineExceeded.
        """
        if self.index is None:
            raise HTTPError(404, "no_index", "This server has no index; start it with --index DIR.")
        ends = self.ends
        condition = None if where is None else engine_filter(where, self.index.columns)
        (vector,) = (await self.vectors(**{column: [value]}))[column]
        words, find = value if hybrid else None, self.index.find

        def search() -> list[Hit]:
            return find(vector, count, condition, words, ends - time.monotonic())

        return await self.searches.ask(search, ends - time.monotonic())

    async def likely(self, column: str, values: list[Any], labels: list[str], template: str) -> list[dict[str, float]]:
        """Classify zero-shot: return the probabilities of the labels per image or sound."""
        texts = label_texts(labels, template, self.limits)
        found = await self._vectors({"text": texts, column: values}, self.limits.labels)
        rows = class_probabilities(self.run.model, torch.from_numpy(found[column]), torch.from_numpy(found["text"]))
        return [dict(zip(labels, row, strict=True)) for row in rows.tolist()]
