"""Folders of images: with captions in text files beside them, with `metadata.csv` or `.jsonl`, or a folder a class."""

from __future__ import annotations

from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._media_folder import matches_folder, read_folder
from polymodal.corpora.rows import Rows
from polymodal.modalities import Image
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "a folder of images, with .txt files, metadata.csv or metadata.jsonl, or a folder for each class"


def matches(data: DataFiles) -> Match:
    return matches_folder(data, IMAGE_SUFFIXES)


def read(data: DataFiles) -> Rows:
    """List the images. See `read_folder`."""
    return read_folder(data, "image", IMAGE_SUFFIXES, Image)
