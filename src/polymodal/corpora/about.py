"""What is said of a corpus before its data are there. This module imports nothing, since listings need it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """What `polymodal corpora` says of a corpus.

    modalities: for listings. download_bytes: what a fetch brings. composed: "" for data as they were found, else what
    was composed or synthesised; figures measured on such a corpus say so. version: raised when preparation changes, so
    that an old cache is not read.
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
        """Its name in the cache."""
        return f"{self.name}-{self.version}"
