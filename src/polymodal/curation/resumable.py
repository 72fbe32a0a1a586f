"""Resumable work of a model: results of finished chunks are kept in a file until all are done."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from polymodal.errors import UserError
from polymodal.rng import ExampleRNG


def progress_file(folder: Path) -> Path:
    """Return the progress file of an output folder."""
    return folder.with_name(f".{folder.name}.unfinished.jsonl")


def run_resumably(
    chunks: Iterable[Any],
    work: Callable[[int, Any], Any],
    file: Path | None = None,
    settings: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[Any]:
    """Yield `work(index, chunk)` for each chunk in order, as JSON values; results in the file are not recomputed.

    file: the first line is `settings()`, everything that the work depends on; one line per finished chunk follows.
    Without a file nothing is kept. Raises UserError for a file with other settings.
    """
    if file is None:
        yield from (work(index, chunk) for index, chunk in enumerate(chunks))
        return
    first = json.dumps(settings(), sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = _whole_lines(file)
    if stored and stored[0] != first:
        raise UserError(
            f"{file} was begun with another run, other data or options; remove it, or choose another --out."
        )
    with file.open("a", encoding="utf-8") as kept:
        if not stored:
            kept.write(first + "\n")
        for index, chunk in enumerate(chunks):
            if index + 1 < len(stored):
                yield json.loads(stored[index + 1])
                continue
            result = work(index, chunk)
            kept.write(json.dumps(result) + "\n")
            kept.flush()
            yield result


def _whole_lines(file: Path) -> list[str]:
    """Read the complete lines of a file, truncating a partial last line."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(file, complete)
    return content[:complete].decode().splitlines()


def generator_of(seed: int, chunk: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator that depends on seed and chunk only."""
    return torch.Generator(device).manual_seed(int(ExampleRNG.of(seed, chunk, 1).seeds[0] >> 1))


def merge_counts(total: Any, more: Any) -> None:
    """Add the counts of a dataclass to those of another, dicts by key."""
    for field in dataclasses.fields(total):
        old, new = getattr(total, field.name), getattr(more, field.name)
        if isinstance(old, dict):
            combined = old | {key: old[key] + value if key in old else value for key, value in new.items()}
        else:
            combined = old + new
        setattr(total, field.name, combined)
