"""Formats in which users store data. The list of formats is this folder: a module is a format.

A format has `description`, `matches(data) -> Match` and `read(data) -> Rows`. What the columns of its rows are is
found afterwards, by `schemas/`, the same for all formats.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from polymodal.corpora.formats._data_files import INSTEAD, DataFiles, Match
from polymodal.errors import UserError, unknown


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all formats."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))


def module(name: str) -> Any:
    """Return a format. Raises UserError for an unknown name."""
    if name not in names():
        raise unknown("format", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def best_formats(data: DataFiles) -> list[str]:
    """Return the names of the formats with the best match; none where no format matches."""
    matches = {name: module(name).matches(data) for name in names()}
    best = max(matches.values())
    return [name for name, match in matches.items() if match is best and match is not Match.NO]


def format_of(data: DataFiles) -> str:
    """Return the format with the best match. Raises UserError where no format, or more than one, has it."""
    best = best_formats(data)
    if not best:
        hints = [f"; {INSTEAD[suffix]} to read {suffix} files" for suffix in data.by_suffix if suffix in INSTEAD]
        raise UserError(
            f"{data.given[0]} holds {data.summary()}, which is in no format that is read{''.join(hints)}. These are: "
            f"{', '.join(names())} (`polymodal data --help` describes them)."
        )
    if len(best) > 1:
        raise UserError(
            f"{data.given[0]} holds {data.summary()}, which may be {' or '.join(best)}; say which with "
            f"--format {best[0]}, or name the files."
        )
    return best[0]
