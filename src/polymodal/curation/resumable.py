"""Long work of a model that goes on after a stop: what came of each chunk of examples is kept until all is done."""

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
    """Where what comes of chunks is kept while the folder is made."""
    return folder.with_name(f".{folder.name}.unfinished.jsonl")


def run_resumably(
    chunks: Iterable[Any],
    work: Callable[[int, Any], Any],
    file: Path | None = None,
    settings: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[Any]:
    """What `work` makes of each chunk and its number, values of JSON, in order; what the file has is not made again.

    file: its first line is what `asked` gives, all that the work depends on; a line a chunk follows, each written when
    it is done. Without a file nothing is kept. Raises UserError for a file that was begun with something else asked.
    """
    if file is None:
        yield from (work(number, chunk) for number, chunk in enumerate(chunks))
        return
    first = json.dumps(settings(), sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    done = _whole_lines(file)
    if done and done[0] != first:
        raise UserError(
            f"{file} was begun with another run, other data or options; remove it, or choose another --out."
        )
    with file.open("a", encoding="utf-8") as kept:
        if not done:
            kept.write(first + "\n")
        for number, chunk in enumerate(chunks):
            if number + 1 < len(done):
                yield json.loads(done[number + 1])
                continue
            made = work(number, chunk)
            kept.write(json.dumps(made) + "\n")
            kept.flush()
            yield made


def _whole_lines(file: Path) -> list[str]:
    """The lines of a file; one that was cut off while it was written is taken out."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)
    return content[:whole].decode().splitlines()


def generator_of(seed: int, chunk: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers of a chunk, whatever was drawn for others before."""
    return torch.Generator(device).manual_seed(int(ExampleRNG.of(seed, chunk, 1).seeds[0] >> 1))


def merge_counts(total: Any, more: Any) -> None:
    """Add the counts of a dataclass to those of another; in dicts, what both have is added, too."""
    for field in dataclasses.fields(total):
        there, new = getattr(total, field.name), getattr(more, field.name)
        if isinstance(there, dict):
            both = there | {key: there[key] + value if key in there else value for key, value in new.items()}
        else:
            both = there + new
        setattr(total, field.name, both)
