"""Names and metadata of corpora, available before their data. Listings need this module: it imports nothing slow."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class About:
    """Metadata for `polymodal corpora`.

    modalities: for listings. download_bytes: size of the downloads. composed: "" for data as they were found, else what
    was composed or synthesized; metrics measured on such a corpus say so. version: increased when preparation changes,
    to invalidate old caches.
    """

    name: str
    description: str
    license: str
    source: str
    modalities: tuple[str, ...]
    download_bytes: int = 0
    composed: str = ""
    version: int = 1

    @property
    def folder(self) -> str:
        """Folder name in the cache."""
        return f"{self.name}-{self.version}"


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of the built-in corpora: the files of this folder that have `about`."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return tuple(file.stem for file in files if "\nabout = About(" in file.read_text(encoding="utf-8"))


def is_built_in(name: str) -> bool:
    """Return whether a word that may be a path is the name of a built-in corpus: a file or folder goes before."""
    return name in names() and not Path(name).exists()
