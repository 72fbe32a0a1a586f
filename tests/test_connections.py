"""Connections with real sockets: heads that never end, more clients than descriptors, answers that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import threading
import time

import pytest

from polymodal.serving import protocol
from polymodal.serving.limits import Limits
from polymodal.serving.protocol import Server, _OneLine, configured

LARGE = b"a" * (64 * 2**20)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    body = LARGE if scope["path"] == "/large" else b"right"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def served(**limits):
    """A server in another thread, and a function that connects to it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(configured(app, Limits(**limits)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    address, opened = listener.getsockname(), []

    def connect(sent: bytes = b"") -> socket.socket:
        opened.append(socket.create_connection(address, timeout=10))
        opened[-1].sendall(sent)
        return opened[-1]

    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server, connect
    finally:
        for one in opened:
            one.close()
        server.should_exit = True
        thread.join()


def get(path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def answered(connection: socket.socket) -> bool:
    """Whether the next answer comes."""
    told = b""
    while not told.endswith(b"right") and (part := connection.recv(1000)):
        told += part
    return told.endswith(b"right")


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    parts = []
    while True:
        try:
            part = connection.recv(2**20)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", get() + b"GET / HT"])
def test_a_head_that_never_ends_is_given_up(sent):
    with served(head_deadline=0.5) as (server, connect):
        begin = time.monotonic()
        connection, told = connect(sent), b""
        connection.settimeout(0.1)
        while time.monotonic() < begin + 8:
            try:
                part = connection.recv(1000)
                if not part:
                    break
                told += part
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    connection.send(b"x")  # a byte now and then does not help
            except ConnectionError:
                break
        assert 0.4 < time.monotonic() - begin < 4
        assert b"right" in told if sent.startswith(get()) else b"408" in told
        for _ in range(100):
            if not server.server_state.connections:
                break
            time.sleep(0.02)
        assert not server.server_state.connections


def test_the_deadline_is_of_the_head_alone():
    with served(head_deadline=0.3) as (_, connect):
        connection = connect(get("/slow"))
        assert answered(connection)
        connection.sendall(get())
        assert answered(connection), "a connection is used again"


def test_more_connections_than_allowed_are_answered_with_503():
    with served(connections=3, head_deadline=1.0) as (server, connect):
        idle = [connect(b"GET / HT") for _ in range(3)]
        time.sleep(0.1)
        assert b"503" in everything(connect())
        assert len(server.server_state.connections) <= 3
        for one in idle:
            assert b"408" in everything(one)
        connection = connect(get())
        assert answered(connection), "when the others are gone"


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(protocol.Protocol, "stalled_seconds", 0.3)
    with served() as (server, connect):
        connection = connect(get("/large"))
        for _ in range(200):
            time.sleep(0.02)
            if not server.server_state.connections:
                break
        assert not server.server_state.connections
        assert len(everything(connection)) < len(LARGE)
        reading = connect(get("/large"))
        told = 0
        while told < len(LARGE):
            told += len(reading.recv(2**19))
            time.sleep(0.005)
        assert told >= len(LARGE), "who reads, however slowly, gets all"


def test_a_hundred_clients_are_answered():
    with served() as (_, connect):
        connections = [connect(get("/slow")) for _ in range(100)]
        assert all(map(answered, connections))


def test_descriptors_bound_the_connections(monkeypatch):
    import resource

    given = {"limit": (1024, 1024)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: given["limit"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: given.update(limit=limit))
    assert protocol._connections(100) == 100
    assert protocol._connections(1000) == 1024 - protocol.BACKLOG - protocol.OTHER_FILES
    given["limit"] = (1024, 4096)
    assert protocol._connections(1000) == 1000
    assert given["limit"] == (1000 + protocol.BACKLOG + protocol.OTHER_FILES, 4096)
    given["limit"] = (20, 20)
    assert protocol._connections(1000) == 5


def test_that_descriptors_have_run_out_is_one_line(caplog):
    handler, loop = _OneLine(), asyncio.new_event_loop()
    try:
        loop.set_exception_handler(handler)
        with caplog.at_level(logging.ERROR):
            for _ in range(1000):
                error = OSError(errno.EMFILE, "Too many open files")
                loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
            assert len(caplog.records) == 1
            assert "Too many open files" in caplog.text
            loop.call_exception_handler({"message": "something else"})
            assert len(caplog.records) == 2
    finally:
        loop.close()
