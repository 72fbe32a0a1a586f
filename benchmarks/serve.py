"""The server under load: 200 clients on loopback for a minute, and clients that do it harm meanwhile.

One request in twenty is malformed or oversized. Beside the clients, some send their head a byte a second, some ask
for an expensive answer and leave before it comes, and some ask for the most expensive requests within the limits.
Every answer is compared with the vector of its own text. Then so many clients come that the queue is full (429),
20,000 requests show whether memory grows, and SIGTERM arrives under load: what was accepted is answered. The same in
batches and with one value at a time. Server and clients share the machine's cores.

    pip install -e ".[serve]" && python benchmarks/serve.py [RUN] [--seconds 60] [--requests 20000] [--clients 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polymodal import corpora
from polymodal.recipes.dual_encoders import clip
from polymodal.training import load_run, train
from polymodal.types import Budget

TEXTS, LARGEST, HEAD_DEADLINE, QUEUE = 500, 64 * 2**10, 3, 256
BAD = (b"{", b'{"text": "a"}', b'{"image": ["AAAA"]}', b'{"txt": []}', b'{"text": [""]}', b" " * (LARGEST + 1))
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Load:
    """What the clients ask for, and what they count. times: seconds of right answers."""

    port: int
    texts: list[str]
    vectors: np.ndarray
    counted: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    @property
    def expensive(self) -> dict[str, Any]:
        """As many texts, and as long ones, as a request may have."""
        long = " ".join(self.texts).encode("ascii", "ignore").decode()[:900]
        return {"text": [f"{long}{number}" for number in range(64)]}


def head_of(body: bytes, path: str = "/embed") -> bytes:
    lines = f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def ask(connection: Connection, body: bytes) -> tuple[int, bytes, bool]:
    """Return status, body, and whether the server closes the connection."""
    reader, writer = connection
    writer.write(head_of(body) + body)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(re.search(r"content-length: (\d+)", head)[1])
    return int(head.split()[1]), await reader.readexactly(length), "connection: close" in head


async def client(load: Load, seed: int, until: float, requests: int | None = None, bad: float = 0.05) -> None:
    """Ask until a time, or so many times."""
    rng, connection, count = random.Random(seed), None, 0
    while time.monotonic() < until and count != requests:
        count += 1
        if connection is None:
            connection = await asyncio.open_connection("127.0.0.1", load.port)
        is_bad, number = rng.random() < bad, rng.randrange(len(load.texts))
        body = rng.choice(BAD) if is_bad else json.dumps({"text": [load.texts[number]]}).encode()
        begin = time.perf_counter()
        try:
            status, answer, closing = await ask(connection, body)
        except (OSError, asyncio.IncompleteReadError):
            load.counted["refused without an answer" if len(body) > LARGEST else "lost"] += 1
            connection = None
            continue
        if closing:
            connection[1].close()
            connection = None
        if is_bad:
            load.counted["bad, 4xx" if 400 <= status < 500 else f"bad, {status}"] += 1
        elif status == 200:
            load.times.append(time.perf_counter() - begin)
            right = np.allclose(json.loads(answer)["text"][0], load.vectors[number], atol=1e-4)
            load.counted["right" if right else "WRONG ANSWER"] += 1
        else:
            load.counted[f"good, {status}"] += 1
    if connection is not None:
        connection[1].close()


async def slow_client(load: Load, until: float) -> None:
    """Send the head of a request a byte a second, again and again; the server must give up on each."""
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
        begin = time.monotonic()
        with suppress(OSError):
            for byte in head_of(b"x" * 50):
                writer.write(bytes([byte]))
                await writer.drain()
                with suppress(TimeoutError):
                    if await asyncio.wait_for(reader.read(4096), 1) is not None:
                        break
                if time.monotonic() > until + 2 * HEAD_DEADLINE:
                    break
        late = time.monotonic() - begin > 3 * HEAD_DEADLINE
        load.counted["SLOW CLIENT KEPT" if late else "slow, closed"] += 1
        writer.close()


async def leaving_client(load: Load, seed: int, until: float) -> None:
    """Ask for an expensive answer and leave before it comes."""
    rng = random.Random(seed)
    body = json.dumps(load.expensive).encode()
    while time.monotonic() < until:
        _, writer = await asyncio.open_connection("127.0.0.1", load.port)
        writer.write(head_of(body) + body)
        with suppress(OSError):
            await writer.drain()
        await asyncio.sleep(rng.uniform(0, 0.2))
        writer.transport.abort()
        load.counted["left"] += 1


async def expensive_client(load: Load, until: float) -> None:
    """Ask for what is the most expensive within the limits."""
    body, connection = json.dumps(load.expensive).encode(), None
    while time.monotonic() < until:
        if connection is None:
            connection = await asyncio.open_connection("127.0.0.1", load.port)
        status, answer, closing = await ask(connection, body)
        right = status in (429, 504) or (status == 200 and len(json.loads(answer)["text"]) == 64)
        load.counted[f"expensive, {status}" if right else f"EXPENSIVE, {status}"] += 1
        if closing:
            connection[1].close()
            connection = None
    if connection is not None:
        connection[1].close()


async def under_attack(load: Load, clients: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    harmful: list[Coroutine[Any, Any, None]] = [expensive_client(load, until) for _ in range(2)]
    for number in range(max(clients // 20, 1)):
        harmful += [slow_client(load, until), leaving_client(load, number, until)]
    await asyncio.gather(*(client(load, number, until) for number in range(clients)), *harmful)


async def overload(load: Load) -> None:
    """Three times as many values at once as the queue has room for: answers, or 429, and nothing else."""

    async def once() -> None:
        connection = await asyncio.open_connection("127.0.0.1", load.port)
        status, _, _ = await ask(connection, json.dumps(load.expensive).encode())
        load.counted[f"overload, {status}"] += 1
        connection[1].close()

    await asyncio.gather(*(once() for _ in range(3 * QUEUE // 64 + 8)))


async def drained(load: Load, process: subprocess.Popen[str], clients: int) -> float:
    """SIGTERM while every client waits for an answer; return the seconds until the server has ended."""

    async def once(number: int) -> None:
        connection = await asyncio.open_connection("127.0.0.1", load.port)
        ready.append(number)
        status, answer, _ = await ask(connection, json.dumps({"text": [load.texts[number]]}).encode())
        right = status == 200 and np.allclose(json.loads(answer)["text"][0], load.vectors[number], atol=1e-4)
        load.counted["answered after SIGTERM" if right else f"NOT ANSWERED after SIGTERM, {status}"] += 1
        connection[1].close()

    ready: list[int] = []
    asked = asyncio.gather(*(once(number % len(load.texts)) for number in range(clients)), return_exceptions=True)
    while len(ready) < clients:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)  # the requests are on their way
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    lost = sum(isinstance(one, Exception) for one in await asked)
    load.counted["lost after SIGTERM"] += lost
    await asyncio.to_thread(process.wait, 60)
    return time.monotonic() - begin


def resident(process: subprocess.Popen[str]) -> float:
    """Return the memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@contextmanager
def served(place: str, largest: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "polymodal", "serve", place, "--port", "0", "--queue-size", str(QUEUE)]
    command += ["--body-bytes", str(LARGEST), "--max-batch-size", str(largest), "--head-deadline", str(HEAD_DEADLINE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, int(re.search(r":(\d+) ", process.stdout.readline())[1])
    finally:
        process.kill()
        process.wait()


def measure(
    place: str, texts: list[str], vectors: np.ndarray, largest: int, clients: int, seconds: float, requests: int
) -> dict[str, Any]:
    """Return counts, times, growth of memory in MiB, and how the server ended."""
    with served(place, largest) as (process, port):
        load = Load(port, texts, vectors)
        begin = time.monotonic()
        asyncio.run(under_attack(load, clients, seconds))
        seconds = time.monotonic() - begin
        times = list(load.times)
        asyncio.run(overload(load))
        before, many = resident(process), min(clients, 20)

        async def ask_many() -> None:
            ends = time.monotonic() + 600
            await asyncio.gather(*(client(load, number, ends, requests // many, 0) for number in range(many)))

        asyncio.run(ask_many())
        grown = resident(process) - before
        stopped = asyncio.run(drained(load, process, many))
        return {
            "counted": dict(load.counted.most_common()),
            "rate": len(times) / seconds,
            "p50": statistics.median(times),
            "p99": statistics.quantiles(times, n=100)[98],
            "grown": grown,
            "stopped": stopped,
            "status": process.returncode,
            "log": process.stderr.read(),
        }


def texts_and_vectors(place: str) -> tuple[list[str], np.ndarray]:
    emoji = corpora.emoji()
    captions = {c.text for row in emoji.rows("train")[:2000] for c in emoji.value(int(row), "captions")}
    texts = sorted(captions)[:TEXTS]
    return texts, load_run(place).embed(text=texts)["text"].numpy()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", nargs="?")
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--requests", type=int, default=20_000)
    options.add_argument("--clients", type=int, default=200)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = given.run or str(Path(folder) / "run")
        if given.run is None:
            train(clip.Recipe(), corpora.emoji(), Budget(steps=5), out=place)
        texts, vectors = texts_and_vectors(place)
        rates = {}
        for label, largest in (("in batches", 64), ("one at a time", 1)):
            took = measure(place, texts, vectors, largest, given.clients, given.seconds, given.requests)
            rates[label] = took["rate"]
            p50, p99 = took["p50"] * 1e3, took["p99"] * 1e3
            print(f"{label}: {took['rate']:.0f} right answers a second, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
            print(f"    {', '.join(f'{count:,} {what}' for what, count in took['counted'].items())}")
            print(f"    {took['grown']:+.1f} MiB over {given.requests:,} requests; SIGTERM under load:", end=" ")
            lines = len(took["log"].splitlines())
            print(f"ended in {took['stopped']:.1f} s with status {took['status']}, {lines} lines of log")
        print(f"batches: {rates['in batches'] / rates['one at a time']:.1f} x the answers a second")


if __name__ == "__main__":
    main()
