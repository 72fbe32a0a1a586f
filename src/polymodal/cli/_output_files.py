"""Files that commands write: under the name that the user gave, or a free one like the default."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class OutputFile(NamedTuple):
    """replaces: whether a file of this name was there before."""

    path: Path
    replaces: bool

    def __str__(self) -> str:
        return f"{self.path}{' (in place of the file that was there)' if self.replaces else ''}"


def output_file(named: str | None, default: str) -> OutputFile:
    """Return the file that the user named, or else the default; where it exists, the first free name with a number:
    contact-sheet-2.png."""
    if named is not None:
        return OutputFile(Path(named), Path(named).is_file())
    path, number = Path(default), 2
    while path.exists():
        path = Path(default).with_stem(f"{Path(default).stem}-{number}")
        number += 1
    return OutputFile(path, False)
