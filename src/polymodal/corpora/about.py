"""Metadata of corpora that is available before their data. This module imports nothing, since listings need it."""

from __future__ import annotations

from dataclasses import dataclass


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
