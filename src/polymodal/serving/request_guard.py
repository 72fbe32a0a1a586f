"""Middleware that every request passes first: API key, size of the body, metrics, and clients that disconnect."""

import asyncio
import hmac
import time
from collections.abc import Awaitable

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polymodal.errors import UserError
from polymodal.serving.http_errors import CLIENT_ERRORS, HTTPError, error_response
from polymodal.serving.page.guard import check_page_path, is_page, largest_page_body
from polymodal.serving.request_body import Bodies
from polymodal.serving.service import Service

OPEN = ("/healthz", "/readyz")  # without API key


def usable_key(key: str | None) -> str | None:
    """Check the API key. Raises UserError for an empty key, such as that of an unset variable."""
    if key is not None and not key.strip():
        raise UserError("The API key is empty; give one with --api-key or POLYMODAL_API_KEY, or neither.")
    return key


class RequestGuard:
    """Middleware for the API key, the size of request bodies, and metrics of requests."""

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None, registry: CollectorRegistry):
        self.app, self.service, self.api_key = app, service, api_key
        self.bodies = Bodies(service.limits)
        self.requests = Counter("polymodal_requests", "Requests", ("path", "status"), registry=registry)
        self.seconds = Histogram("polymodal_request_seconds", "Time to the answer", ("path",), registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        except CLIENT_ERRORS as error:
            await error_response(error).response()(scope, receive, noted)
        except _Left:
            status = 499
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.requests.labels(path, str(status)).inc()
            self.seconds.labels(path).observe(time.perf_counter() - begin)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_key(scope)
        page, largest = is_page(scope["path"]), self.service.limits.body_bytes
        if page:
            check_page_path(scope["path"])
            largest = largest_page_body(scope["path"], largest)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        body = await self.bodies.receive(length, receive, largest)
        try:
            if page:
                await self.app(scope, _again(body, receive), send)
            else:
                await _while_connected(self.app(scope, _again(body, _never), send), receive)
        finally:
            self.bodies.release(body)

    def _check_key(self, scope: Scope) -> None:
        if self.api_key is None or scope["path"] in OPEN or is_page(scope["path"]):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
            raise HTTPError(401, "no_key", "Send the key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"})


class _Left(Exception):
    """The client closed the connection."""


async def _while_connected(answer: Awaitable[None], receive: Receive) -> None:
    """Cancel the response when the client disconnects. Raises _Left."""
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
            return
        answering.cancel()
        await asyncio.wait((answering,))
        raise _Left
    finally:
        for task in (answering, leaving):
            task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def _again(body: bytes, receive: Receive) -> Receive:
    """Replay the body once, then forward later messages, such as a disconnect."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
