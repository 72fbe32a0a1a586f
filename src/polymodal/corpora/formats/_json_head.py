"""The beginning of JSON files, by which formats recognize their own without reading a whole file."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora.formats._data_files import DataFiles

HEAD = 1 << 16  # bytes that are looked at
MAX_FILES = 30  # of a folder that are looked at
SUFFIXES = (".json", ".json.gz")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|["{}\[\],]', re.DOTALL)


def json_heads(data: DataFiles, every: bool = False) -> Iterator[tuple[Path, Any]]:
    """Yield the JSON files with what stands at their beginning; of many files, `MAX_FILES` spread over all.

    every: yield all files, for a format that reads them.
    """
    files = data.with_suffixes(SUFFIXES)
    step = 1 if every or not files else -(-len(files) // MAX_FILES)
    yield from ((file, json_head(file)) for file in files[::step])


def json_head(file: Path) -> Any:
    """Return the value of a JSON file, as far as its first `HEAD` bytes go; None where they are no JSON.

    Objects and lists that go on behind the first bytes have fewer entries. Of JSON lines, the first value is returned.
    """
    try:
        stat = file.stat()
    except OSError:
        return None
    return _head(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _head(file: Path, size: int, changed: int) -> Any:
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            text = stream.read(HEAD).decode("utf-8-sig", errors="ignore").lstrip()
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except ValueError:
            return json.loads(_closed(text))
    except (OSError, ValueError, RecursionError):
        return None


def _closed(text: str) -> str:
    """Cut a truncated text behind the last whole value, and close what is open there."""
    closers: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == '"':  # a string that goes on
            break
        if token in "{[":
            closers.append("}" if token == "{" else "]")
            end = match.end()
        elif token in "}]":
            if not closers:
                break
            closers.pop()
            end = match.end()
        elif token == ",":
            end = match.start()
    return text[:end] + "".join(reversed(closers))


def first_record(held: Any, name: str) -> dict[str, Any]:
    """Return the first record of the list `name` of an object; an empty one where there is none."""
    records = held.get(name) if isinstance(held, dict) else None
    first = records[0] if isinstance(records, list) and records else None
    return first if isinstance(first, dict) else {}
