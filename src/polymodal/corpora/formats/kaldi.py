"""Kaldi's data folders: `wav.scp`, `text`, `utt2spk` and `utt2lang`, a folder a split. Commands are never run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match, splits_of
from polymodal.corpora.formats._delimited import lines_of
from polymodal.corpora.formats._utterances import splits_of_rows, utterances
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError

description = "Kaldi: folders with wav.scp, text and utt2spk"
SCRIPT = "wav.scp"
FURTHER = {"text": "text", "utt2spk": "group", "utt2lang": "language"}  # file -> column


def matches(data: DataFiles) -> Match:
    return Match.CONTENT if any(file.name == SCRIPT for file in data.files) else Match.NO


def read(data: DataFiles) -> Rows:
    """List the sounds of all folders. Paths are relative to the folder of `wav.scp`, or to the folder that was given.

    Raises UserError for commands, archives and segments.
    """
    scripts = [file for file in data.files if file.name == SCRIPT]
    sounds: list[Path] = []
    of_row: list[Path] = []
    columns: dict[str, list[str | None]] = {name: [] for name in FURTHER.values()}
    without: list[str] = []
    for script in scripts:
        _check_segments(script)
        values = {column: _pairs(script.parent / name) for name, column in FURTHER.items()}
        for utterance, place in _pairs(script).items():
            if values["text"] and not values["text"].get(utterance):
                without.append(f"{script}: {utterance}")
                continue
            sounds.append(_sound(script, place, data.root))
            of_row.append(script)
            for column, pairs in values.items():
                columns[column].append(pairs.get(utterance))
    skipped: Sequence[Skipped] = [Skipped(len(without), "has no text", without[0])] if without else []
    filled = {name: column for name, column in columns.items() if any(column)}
    return utterances(data, sounds, filled, skipped, splits_of_rows(splits_of(scripts, data.root), of_row))


def _pairs(file: Path) -> dict[str, str]:
    """Return what stands after the first word of each line, by this word; nothing for a file that does not exist."""
    if not file.is_file():
        return {}
    pairs = (line.strip().partition(" ") for line in (line.replace("\t", " ", 1) for line in lines_of(file)))
    return {name: value.strip() for name, _, value in pairs if name}


def _check_segments(script: Path) -> None:
    if (script.parent / "segments").is_file():
        raise UserError(
            f"{script.parent} has segments of longer recordings, which are not cut; write a file for each, for example "
            "with Kaldi's extract-segments, and remove the file segments."
        )


def _sound(script: Path, place: str, root: Path) -> Path:
    """Return the file that an entry names. Raises UserError for what is none."""
    if place.endswith("|") or place.startswith("|"):
        raise UserError(
            f"{script} has the command '{place[:80]}', and commands in data are not run; write its sounds to files, "
            "and their paths in the place of the commands."
        )
    if ".ark:" in place:
        raise UserError(f"{script} names the archive '{place[:80]}'; write its sounds to files, and their paths here.")
    beside = script.parent / place
    return beside if os.path.isfile(beside) or not os.path.isfile(root / place) else root / place
