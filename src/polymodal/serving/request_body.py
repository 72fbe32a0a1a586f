"""Bodies of requests: received within bounds of bytes and time, and parsed before pydantic sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from polymodal.serving.batching import QueueFull
from polymodal.serving.http_errors import HTTPError
from polymodal.serving.limits import Limits, parsed

HELD = 16  # maximum number of largest requests in memory at the same time


class Bodies:
    """Receives request bodies, and bounds their bytes, each and in total."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.bytes = 0

    async def receive(self, length: bytes, receive: Callable[[], Any], largest: int) -> bytes:
        """Receive a body; `release` must follow. Raises HTTPError.

        length: the Content-Length header. largest: maximum bytes. Too large bodies are never kept in memory.
        """
        too_large = HTTPError(413, "too_large", f"A request has at most {largest:,} bytes.", {"Connection": "close"})
        if length.isdigit() and int(length[:20]) > largest:
            raise too_large
        body, more, ends = bytearray(), True, time.monotonic() + self.limits.deadline
        try:
            while more:
                try:
                    message = await asyncio.wait_for(receive(), ends - time.monotonic())
                except TimeoutError as error:
                    message = "The request did not come in time."
                    raise HTTPError(408, "too_slow", message, {"Connection": "close"}) from error
                if message["type"] == "http.disconnect":
                    raise HTTPError(408, "too_slow", "The client has left.")
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > largest:
                    raise too_large
                if self.bytes + len(chunk) > HELD * self.limits.body_bytes:
                    raise QueueFull
                self.bytes += len(chunk)
                body += chunk
                more = message.get("more_body", False)
        except BaseException:
            self.release(body)
            raise
        return bytes(body)

    def release(self, body: bytes | bytearray) -> None:
        self.bytes -= len(body)


def bounded_route(limits: Limits) -> type[APIRoute]:
    """Return a route class that parses and checks the body in a thread, before pydantic builds an error for each
    value."""

    class _Request(Request):
        parsed: Any = None

        async def json(self) -> Any:
            return self.parsed

    class _Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                checked = _Request(request.scope, request.receive)
                body = await checked.body()
                if body and "json" in checked.headers.get("content-type", "json").lower():
                    checked.parsed = await run_in_threadpool(parsed, body, limits)
                return await handle(checked)

            return bounded

    return _Route
