"""Damage to files and values as accidents and attackers cause it, reproducible from a seed."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from typing import Any

NUMBERS = (b"-1", b"0", b"1e999", b"NaN", b"99999999999999999999", b"2147483648", b"-9223372036854775809", b"1.5")
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "\x00",
    "\ud800",
    "../../../etc/passwd",
    "/dev/zero",
    "http://127.0.0.1:9/x",
    "a" * 5000,
    [],
    {},
    [[]],
    [None],
    ["a", 1],
    {"a": None},
    {"bytes": "a"},
)


def flip_bits(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 30))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def cut_out(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice((1, 7, 512, len(content) // 2))]


def zero_out(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    stop = min(start + rng.choice((1, 4, 512)), len(content))
    content[start:stop] = bytes(stop - start)


def repeat(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + 512] * rng.choice((1, 2, 20))


def insert_noise(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = rng.randbytes(rng.choice((1, 4, 64)))


def enlarge_header(content: bytearray, rng: random.Random) -> None:
    """A length, count or offset of the first kilobyte, or of the end, becomes huge."""
    size = rng.choice((2, 4, 8))
    place = rng.randrange(min(len(content), 1024)) if rng.random() < 0.7 else rng.randrange(len(content))
    huge = rng.choice((2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 3)))
    content[place : place + size] = huge.to_bytes(size, rng.choice(("little", "big")))


def change_number(content: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:200_000]))
    if found:
        one = rng.choice(found)
        content[one.start() : one.end()] = rng.choice(NUMBERS)


def change_separator(content: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb'[",;:\t\n{}<>|\[\]=/ ]', content[:200_000]))
    if found:
        one = rng.choice(found)
        content[one.start() : one.end()] = rng.choice((b"", b"\n", b'"', b"\x00", b"\xff", b",,", b"[" * 5000, b"\t"))


def change_value(content: bytearray, rng: random.Random) -> None:
    """A value of JSON gets another type, or an entry is gone; other files are cut."""
    lines = bytes(content).splitlines() if content.count(b"\n{") else [bytes(content)]
    place = rng.randrange(len(lines))
    try:
        parsed = json.loads(lines[place])
    except (ValueError, RecursionError):
        return cut(content, rng)
    holders = list(_holders(parsed))
    if holders:
        holder, key = rng.choice(holders)
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice(VALUES)
    lines[place] = json.dumps(parsed).encode()
    content[:] = b"\n".join(lines)
    return None


def _holders(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _holders(value[key])


def replace_whole(content: bytearray, rng: random.Random) -> None:
    content[:] = rng.choice(
        (b"", b"\x00", b"[" * 50_000, b"{}", b"[]", b"null", b"\xff\xfe", b"\n" * 100, b"<a>" * 9999)
    )


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bits,
    cut,
    cut_out,
    zero_out,
    repeat,
    insert_noise,
    enlarge_header,
    change_number,
    change_separator,
    change_value,
    change_value,
    replace_whole,
)


def mutate(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return the content with one to three kinds of damage, and their names. Gzip is damaged inside, too."""
    packed = content[:2] == b"\x1f\x8b" and rng.random() < 0.7
    changed = bytearray(gzip.decompress(content) if packed else content)
    names = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        if changed:
            mutation = rng.choice(MUTATIONS)
            mutation(changed, rng)
            names.append(mutation.__name__)
    return gzip.compress(bytes(changed)) if packed else bytes(changed), "+".join(names)
