"""LibriSpeech: `SPEAKER-CHAPTER.trans.txt` files beside the sounds, with lines `id TEXT`."""

from __future__ import annotations

from pathlib import Path

from polymodal.corpora.formats._data_files import DataFiles, Match, splits_of
from polymodal.corpora.formats._delimited import lines_of
from polymodal.corpora.formats._utterances import splits_of_rows, utterances
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES

description = "LibriSpeech: .trans.txt files beside FLAC files"
SUFFIX = ".trans.txt"


def matches(data: DataFiles) -> Match:
    return Match.CONTENT if any(file.name.endswith(SUFFIX) for file in data.files) else Match.NO


def read(data: DataFiles) -> Rows:
    """List the sounds with their transcripts. Splits are those of folders such as `train-clean-100` and `dev-other`."""
    transcripts = [file for file in data.files if file.name.endswith(SUFFIX)]
    beside = {file.with_suffix(""): file for file in data.with_suffixes(AUDIO_SUFFIXES)}
    sounds: list[Path] = []
    texts: list[str | None] = []
    speakers: list[str | None] = []
    of_row: list[Path] = []
    for transcript in transcripts:
        for line in lines_of(transcript):
            name, _, text = line.strip().partition(" ")
            if name:
                place = transcript.parent / name
                sounds.append(beside.get(place, place.parent / f"{name}.flac"))
                texts.append(text.strip() or None)
                speakers.append(name.partition("-")[0])
                of_row.append(transcript)
    columns = {"text": texts, "group": speakers}
    return utterances(data, sounds, columns, (), splits_of_rows(splits_of(transcripts, data.root), of_row))
