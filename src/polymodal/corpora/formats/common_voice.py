"""Common Voice: a folder `clips` and TSV files with the columns `path` and `sentence`, a file a split."""

from __future__ import annotations

from pathlib import Path

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._delimited import head_lines, read_delimited
from polymodal.corpora.formats._utterances import utterances
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES

description = "Common Voice: clips/ and train.tsv, dev.tsv, test.tsv with path and sentence"
FOLDER = "clips"
SPLITS = {"train.tsv": "train", "dev.tsv": "validation", "test.tsv": "test"}
# Columns that are kept: speakers keep together where the files state no splits.
KEPT = {"sentence": "sentence", "locale": "locale", "client_id": "group", "age": "age", "gender": "gender"}


def matches(data: DataFiles) -> Match:
    return Match.CONTENT if any(_is_clips(file) for file in data.with_suffixes((".tsv",))) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read train, dev and test; else `validated.tsv`, else all files, whose sounds are then split by speaker.

    Raises UserError for files of another form.
    """
    files = [file for file in data.with_suffixes((".tsv",)) if _is_clips(file)]
    stated = [file for file in files if file.name.lower() in SPLITS]
    states = any(file.name.lower() == "train.tsv" for file in stated)
    validated = [file for file in files if file.name.lower() == "validated.tsv"]
    sounds: list[Path] = []
    splits: list[str] = []
    skipped: list[Skipped] = []
    columns: dict[str, list[str | None]] = {name: [] for name in KEPT.values()}
    for file in stated if states else validated or files:
        table, left_out = read_delimited(file, "\t")
        skipped += left_out
        paths = [_sound(file, str(path)) for path in table.column("path").to_pylist()]
        sounds += paths
        splits += [SPLITS.get(file.name.lower(), "train")] * len(paths)
        for name, kept in KEPT.items():
            has = name in table.column_names
            columns[kept] += table.column(name).to_pylist() if has else [None] * len(paths)
    filled = {name: values for name, values in columns.items() if any(values)}
    return utterances(data, sounds, filled, skipped, splits if states else None)


def _sound(file: Path, name: str) -> Path:
    """Return the path of a clip; early releases leave out `.mp3`."""
    return file.parent / FOLDER / (name if name.lower().endswith(AUDIO_SUFFIXES) else f"{name}.mp3")


def _is_clips(file: Path) -> bool:
    first = next(iter(head_lines(file, 1)), "").split("\t")
    return {"path", "sentence"} <= {*first} and (file.parent / FOLDER).is_dir()
