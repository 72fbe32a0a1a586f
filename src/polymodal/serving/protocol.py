"""Connections of the server: their number, and timeouts for slow clients."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from polymodal.end_signals import leave_terminal
from polymodal.files import raise_open_files
from polymodal.serving.limits import Limits

log = logging.getLogger("polymodal.server")
BACKLOG = 256  # listen backlog: connections that wait to be accepted
OTHER_FILES = 256  # file descriptors reserved for the index, threads, uploads ...
STALLED = 30.0  # timeout in seconds for a client that does not read its response
QUIET = 60.0  # minimum seconds between log lines about file descriptors


def _brief(status: str, code: str, message: str) -> bytes:
    body = f'{{"error":{{"code":"{code}","message":"{message}"}}}}'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{head}\r\n\r\n{body}".encode()


FULL = _brief("503 Service Unavailable", "busy", "Too many connections are open; try again in a second.")
SLOW = _brief("408 Request Timeout", "too_slow", "The head of the request did not come in time.")


class Protocol(H11Protocol):
    """HTTP/1.1 with a maximum number of connections, and timeouts for request heads and for clients that do not read.

    Uvicorn itself has no timeout for either.
    """

    connections_limit = 1000
    head_seconds = 10.0
    stalled_seconds = STALLED

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._head: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_limit:
            self._refuse(FULL)
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head()
        self._cancel_stalled()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stalled()

    @property
    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch_head(self) -> None:
        """Watch the time from the first byte of a head, or from the connection, until the head is complete."""
        if not self._waits_for_head or self.transport.is_closing():
            self._cancel_head()
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self._close_slow)

    def _close_slow(self) -> None:
        self._head = None
        if self._waits_for_head and not self.transport.is_closing():
            self._refuse(SLOW)

    def _watch_writing(self, left: int) -> None:
        self._cancel_stalled()
        self._stalled = self.loop.call_later(self.stalled_seconds, self._close_stalled, left)

    def _close_stalled(self, left: int) -> None:
        now = self.transport.get_write_buffer_size()
        if now < left:
            self._watch_writing(now)
        else:
            self.transport.abort()

    def _cancel_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _cancel_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


class Server(uvicorn.Server):
    """Uvicorn server that does not log every connection for lack of file descriptors."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to SIGHUP, too, unless it is ignored, as under nohup."""
        number = getattr(signal, "SIGHUP", None)
        main = threading.current_thread() is threading.main_thread()
        if not main or number is None or signal.getsignal(number) is signal.SIG_IGN:
            with super().capture_signals():
                yield
            return
        before = signal.signal(number, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(number, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Complete the requests in progress; the command then ends with status 0, and with 130 after Ctrl-C."""
        if sig == signal.SIGINT:
            super().handle_exit(sig, frame)
            return
        if sig != signal.SIGTERM:
            leave_terminal()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_OneLine())
        await super().startup(sockets)


class _OneLine:
    """Logs a lack of file descriptors at most once a minute; asyncio does so 256 times a second."""

    def __init__(self) -> None:
        self.said = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not str(context.get("message", "")).startswith("socket.accept()"):
            loop.default_exception_handler(context)
        elif time.monotonic() > self.said + QUIET:
            self.said = time.monotonic()
            log.error("no connection can be accepted: %s; raise the limit of open files", context.get("exception"))


def configured(app: Any, limits: Limits) -> uvicorn.Config:
    class Bounded(Protocol):
        connections_limit = _connections(limits.connections)
        head_seconds = limits.head_deadline

    return uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=30,
        backlog=BACKLOG,
    )


def answer_at(listener: socket.socket, app: Any, limits: Limits) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP."""
    Server(configured(app, limits)).run(sockets=[listener])


def _connections(wanted: int) -> int:
    """Return the number of connections for which there are file descriptors, at most `wanted`."""
    soft = raise_open_files(wanted + BACKLOG + OTHER_FILES)
    if soft == math.inf:
        return wanted
    soft = int(soft)
    fit = max(soft - BACKLOG - OTHER_FILES, soft // 4, 1)
    if fit < wanted:
        log.warning("only %d connections can be open at the same time, for %d files can be", fit, soft)
    return min(wanted, fit)
