"""Folders of sounds: with transcripts in text files beside them, `metadata.csv` or `.jsonl`, or a folder a class."""

from __future__ import annotations

from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._media_folder import matches_folder, read_folder
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES
from polymodal.modalities import Audio

description = "a folder of sounds, with .txt files, metadata.csv or metadata.jsonl, or a folder for each class"


def matches(data: DataFiles) -> Match:
    return matches_folder(data, AUDIO_SUFFIXES)


def read(data: DataFiles) -> Rows:
    """List the sounds. See `read_folder`."""
    return read_folder(data, "audio", AUDIO_SUFFIXES, lambda root: Audio(root=root))
