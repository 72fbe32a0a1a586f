"""Karpathy's splits (Karpathy and Fei-Fei 2015): `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`
beside the images.

`restval`, images of COCO's validation set that are trained on, are of `train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.formats._annotated import Annotations, annotated_rows, annotation_table, chunks_of, records_of
from polymodal.corpora.formats._data_files import SPLIT_NAMES, DataFiles, Match
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._json_head import first_record, json_heads
from polymodal.corpora.formats.json import load
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Text

description = "Karpathy's splits of COCO and Flickr: dataset_*.json with `sentences` and `split`, beside the images"
SCHEMA = pa.schema({"file_name": pa.string(), "split": pa.string(), "captions": pa.list_(pa.string())})
SPLITS = SPLIT_NAMES | {"restval": "train"}


def matches(data: DataFiles) -> Match:
    """Match by the records at the beginning of JSON files."""
    return Match.CONTENT if _files(data) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the captions. Raises UserError for a file that has none of them."""
    files = _files(data, every=True) or data.with_suffixes((".json",))
    if not files:
        raise UserError(
            f"{data.given[0]} has no JSON file with Karpathy's `images`, each with `sentences` and `split`."
        )
    annotations = Annotations({"captions": Text()})
    for file in files:
        annotations.add(file, *annotation_table("karpathy", [file], partial(_convert, file)))
        annotations.splits.append(np.array(annotations.tables[-1].column("split").to_pylist(), dtype=object))
    return annotated_rows(data, annotations, ImageFiles.of(data))


def _files(data: DataFiles, every: bool = False) -> list[Path]:
    return [
        file for file, head in json_heads(data, every) if {"sentences", "filename"} <= {*first_record(head, "images")}
    ]


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("tokens", None)
    return record


def _convert(file: Path) -> Conversion:
    return Conversion(SCHEMA, chunks_of(_records(file), SCHEMA))


def _records(file: Path) -> Iterator[dict[str, Any]]:
    for number, image in enumerate(records_of(file, load(file, _slim), "images"), 1):
        name, sentences = image.get("filename"), image.get("sentences")
        if not isinstance(name, str) or not isinstance(sentences, list):
            raise UserError(f"{file} has no filename and sentences for image {number}.")
        folder = image.get("filepath")
        split = str(image.get("split") or "train").lower()
        yield {
            "file_name": f"{folder}/{name}" if folder else name,
            "split": SPLITS.get(split, split),
            "captions": [one["raw"].strip() for one in sentences if isinstance(one, dict) and one.get("raw")],
        }
