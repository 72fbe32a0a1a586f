"""LJSpeech: a folder `wavs` and `metadata.csv`, with lines `id|text|normalized text` and no headings."""

from __future__ import annotations

import os
from pathlib import Path

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._delimited import head_lines, read_delimited
from polymodal.corpora.formats._utterances import utterances
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES

description = "LJSpeech: wavs/ and metadata.csv with lines id|text|normalized text"
FOLDER = "wavs"
LOOKED_AT = 100  # lines


def matches(data: DataFiles) -> Match:
    """Look for metadata whose first lines name files of `wavs`."""
    return Match.CONTENT if any(_is_metadata(file) for file in _candidates(data)) else Match.NO


def read(data: DataFiles) -> Rows:
    """List the sounds with the normalized text, or the text where there is none. Raises UserError for other lines."""
    sounds: list[Path] = []
    texts: list[str | None] = []
    written: list[str | None] = []
    skipped: list[Skipped] = []
    for file in (file for file in _candidates(data) if _is_metadata(file)):
        count = max(2, min(3, head_lines(file, 1)[0].count("|") + 1))
        table, left_out = read_delimited(file, "|", ["id", "text", "normalized"][:count], count)
        skipped += left_out
        plain = table.column("text").to_pylist()
        normalized = table.column("normalized").to_pylist() if count == 3 else plain
        sounds += [_sound(file, str(name)) for name in table.column("id").to_pylist()]
        texts += [clean or text for clean, text in zip(normalized, plain, strict=True)]
        written += plain
    return utterances(data, sounds, {"text": texts, "as_written": written}, skipped)


def _candidates(data: DataFiles) -> list[Path]:
    return [file for file in data.files if file.name.lower() in ("metadata.csv", "metadata.txt")]


def _is_metadata(file: Path) -> bool:
    """Return whether one of the first lines names a sound; some may be missing, as in a part of a data set."""
    if not (file.parent / FOLDER).is_dir():
        return False
    parts = (line.partition("|") for line in head_lines(file, LOOKED_AT))
    return any(bar and os.path.isfile(_sound(file, name.strip())) for name, bar, _ in parts)


def _sound(file: Path, name: str) -> Path:
    stem = file.parent / FOLDER / name
    if name.lower().endswith(AUDIO_SUFFIXES):
        return stem
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".wav", ".flac", ".mp3", ".ogg")]
    return next((path for path in paths if os.path.isfile(path)), paths[0])
