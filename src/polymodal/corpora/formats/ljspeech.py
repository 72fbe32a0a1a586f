"""LJSpeech: a folder `wavs` and `metadata.csv`, with lines `id|text|normalized text` and no headings."""

from __future__ import annotations

from pathlib import Path

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._delimited import head_lines, read_delimited
from polymodal.corpora.formats._utterances import utterances
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES

description = "LJSpeech: wavs/ and metadata.csv with lines id|text|normalized text"
FOLDER = "wavs"


def matches(data: DataFiles) -> Match:
    """Look for a first line of metadata that names a file of `wavs`."""
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
    first = next(iter(head_lines(file, 1)), "")
    name, bar, _ = first.partition("|")
    return bool(bar) and (file.parent / FOLDER).is_dir() and _sound(file, name).is_file()


def _sound(file: Path, name: str) -> Path:
    suffix = "" if name.lower().endswith(AUDIO_SUFFIXES) else ".wav"
    return file.parent / FOLDER / f"{name}{suffix}"
