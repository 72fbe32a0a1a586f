"""Folders of clips: with texts in text files beside them, with `metadata.csv` or `.jsonl`, or a folder a class."""

from __future__ import annotations

from polymodal.corpora.formats._media_folder import matches_folder, read_folder
from polymodal.corpora.formats._source import Match, Source
from polymodal.corpora.rows import Rows
from polymodal.modalities import Video
from polymodal.modalities.video import SUFFIXES

description = "a folder of clips, with .txt files, metadata.csv or metadata.jsonl, or a folder for each class"


def matches(source: Source) -> Match:
    return matches_folder(source, SUFFIXES)


def read(source: Source) -> Rows:
    """List the clips. See `read_folder`."""
    return read_folder(source, "video", SUFFIXES, lambda root: Video(root=root))
