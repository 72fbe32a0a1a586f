"""The server under load: 200 clients on loopback, one request in twenty malformed or oversized.

Every answer is compared with the vector of its own text. The same with one value at a time in place of batches. Server
and clients share the machine's cores.

    pip install -e ".[serve]" && python benchmarks/serve.py [RUN]
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from polymodal import corpora
from polymodal.recipes.dual_encoders import clip
from polymodal.training import load_run, train
from polymodal.types import Budget

CLIENTS, SECONDS, TEXTS, LARGEST = 200, 60, 500, 64 * 2**10
BAD = (b"{", b'{"text": "a"}', b'{"image": ["AAAA"]}', b'{"txt": []}', b'{"text": [""]}', b" " * (LARGEST + 1))


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, bytes, bool]:
    """Status, body, and whether the server closes the connection."""
    writer.write(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(re.search(r"content-length: (\d+)", head)[1])
    return int(head.split()[1]), await reader.readexactly(length), "connection: close" in head


async def client(port: int, seed: int, texts: list[str], vectors: np.ndarray, until: float, seen: Counter, times: list):
    rng, connection = random.Random(seed), None
    while time.monotonic() < until:
        if connection is None:
            connection = await asyncio.open_connection("127.0.0.1", port)
        bad = rng.random() < 0.05
        number = rng.randrange(len(texts))
        body = rng.choice(BAD) if bad else json.dumps({"text": [texts[number]]}).encode()
        begin = time.perf_counter()
        try:
            status, answer, closing = await ask(*connection, body)
        except (OSError, asyncio.IncompleteReadError):
            seen["refused without an answer" if len(body) > LARGEST else "lost"] += 1
            connection = None
            continue
        if closing:
            connection[1].close()
            connection = None
        if bad:
            seen["bad, 4xx" if 400 <= status < 500 else f"bad, {status}"] += 1
        elif status == 200:
            times.append(time.perf_counter() - begin)
            right = np.allclose(json.loads(answer)["text"][0], vectors[number], atol=1e-4)
            seen["right" if right else "WRONG ANSWER"] += 1
        else:
            seen[f"good, {status}"] += 1
    if connection is not None:
        connection[1].close()


async def load(port: int, texts: list[str], vectors: np.ndarray) -> tuple[Counter, list[float]]:
    seen, times, until = Counter(), [], time.monotonic() + SECONDS
    await asyncio.gather(*(client(port, n, texts, vectors, until, seen, times) for n in range(CLIENTS)))
    return seen, times


def main(place: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if place is None:
            place = str(Path(folder) / "run")
            train(clip.Recipe(), corpora.emoji(), Budget(steps=5), out=place)
        emoji = corpora.emoji()
        texts = sorted({c.text for row in emoji.rows("train")[:2000] for c in emoji.value(int(row), "captions")})[
            :TEXTS
        ]
        vectors = load_run(place).embed(text=texts)["text"].numpy()
        rates = {}
        for label, largest in (("in batches", 64), ("one at a time", 1)):
            command = [sys.executable, "-m", "polymodal", "serve", place, "--port", "0"]
            command += ["--body-bytes", str(LARGEST), "--max-batch-size", str(largest)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            port = int(re.search(r":(\d+) ", server.stdout.readline())[1])
            seen, times = asyncio.run(load(port, texts, vectors))
            server.terminate()
            server.wait()
            rates[label] = len(times) / SECONDS
            p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
            print(f"{label}: {rates[label]:.0f} right answers a second, p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")
            print(f"    {', '.join(f'{count:,} {what}' for what, count in seen.most_common())}")
        print(f"batches: {rates['in batches'] / rates['one at a time']:.1f} x the answers a second")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
