"""RefCOCO, RefCOCO+ and RefCOCOg in JSON: an object of splits, each a list of records with `expressions` and `bbox`, as
SeqTR and SimVG publish it. Tables of such records are of the formats `json` and `parquet`.

The pickles `refs(unc).p` of the authors are never read: a pickle can run code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._annotated import Annotations, annotated_rows, annotation_table, chunks_of
from polymodal.corpora.formats._data_files import SPLIT_NAMES, DataFiles, Match
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._json_head import json_heads
from polymodal.corpora.formats._referit import pickled_refs
from polymodal.corpora.formats.json import load
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Expressions

description = "RefCOCO(+/g): a JSON object of splits, with `expressions` and `bbox` (refs(unc).p is not read)"
SPLITS = SPLIT_NAMES | {"testa": "test", "testb": "test_b"}
SCHEMA = pa.schema({"file_name": pa.string(), "split": pa.string(), "expressions": Expressions().arrow_type})
NOT_READ = ("mask", "segmentation", "counts")
EXPRESSIONS = ("expressions", "sentences", "refs")


def matches(data: DataFiles) -> Match:
    """Match by the records at the beginning of JSON files, and by the names of pickles, to refuse them."""
    return Match.CONTENT if _files(data) or pickled_refs(data) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the expressions, a row an image. Raises UserError for a pickle."""
    files = _files(data, every=True)
    if not files:
        pickles = pickled_refs(data)
        raise UserError(
            f"{pickles[0]} is a pickle, which can run code and is never read; take RefCOCO as JSON "
            '([{"image": "1.jpg", "sentences": ["the left cat"], "bbox": [x, y, width, height], "split": "train"}, '
            "...]) or as Parquet of the hub instead. Other annotations in the folder are read with --format coco."
            if pickles
            else f"{data.given[0]} has no JSON object of splits with `expressions` and `bbox`."
        )
    images = ImageFiles.of(data)
    annotations = Annotations({"expressions": Expressions()})
    for file in files:
        table, skipped = annotation_table("refcoco", [file], partial(_convert, file))
        annotations.splits.append(np.array(table.column("split").to_pylist(), dtype=object))
        annotations.add(file, _with_images(table, images, file), skipped)
    return annotated_rows(data, annotations, images)


def _files(data: DataFiles, every: bool = False) -> list[Path]:
    return [file for file, head in json_heads(data, every) if _is_refcoco(head)]


def _is_refcoco(head: Any) -> bool:
    if not isinstance(head, dict) or not head or not all(_split(name) for name in head):
        return False
    lists = [value for value in head.values() if isinstance(value, list) and value]
    return bool(lists) and all(
        isinstance(value[0], dict) and "bbox" in value[0] and _expressions(value[0]) for value in lists[:1]
    )


def _split(name: Any) -> str | None:
    """Return the split of a name such as `train`, `val`, `testA`, `val_refcoco_unc`."""
    lower = str(name).lower()
    return SPLITS.get(lower) or SPLITS.get(lower.partition("_")[0])


def _expressions(record: Mapping[str, Any]) -> list[str]:
    given: list[Any] = next((record[name] for name in EXPRESSIONS if isinstance(record.get(name), list)), [])
    texts = [one.get("raw") or one.get("sent") if isinstance(one, dict) else one for one in given]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    for name in NOT_READ:
        record.pop(name, None)
    return record


def _convert(file: Path) -> Conversion:
    by_image: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    bad: list[str] = []
    for name, records in load(file, _slim).items():
        split = _split(name)
        if split is None or not isinstance(records, list):
            raise UserError(f"{file} has '{name}', which is no split with a list of records.")
        for number, record in enumerate(records):
            image = next((record[key] for key in ("image", "file_name", "image_id") if key in record), None)
            box = _ltrb(record.get("bbox"))
            if image is None or box is None or not _expressions(record):
                bad.append(f"{file.name}, number {number + 1} of {name}")
                continue
            stored = [{"text": text, "boxes": [box], "clauses": 0} for text in _expressions(record)]
            by_image[split, str(image)] += stored
    if not by_image:
        raise UserError(f"No record of {file} has an image, expressions and a box.")
    skipped = [Skipped(len(bad), "has no image, no expression, or a box that is none", bad[0])] if bad else []
    records = (
        {"file_name": image, "split": split, "expressions": stored} for (split, image), stored in by_image.items()
    )
    return Conversion(SCHEMA, chunks_of(records, SCHEMA), skipped)


def _ltrb(bbox: Any) -> list[float] | None:
    """Return left, top, right, bottom of left, top, width, height, cut at the edges; None for a box that is none."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(edge, int | float) for edge in bbox):
        return None
    left, top, width, height = bbox
    if not (width > 0 and height > 0 and left + width > 0 and top + height > 0):
        return None
    return [max(left, 0.0), max(top, 0.0), left + width, top + height]


def _with_images(table: pa.Table, images: ImageFiles, file: Path) -> pa.Table:
    """Replace numbers of images by the names that the files of COCO, Flickr30k and ReferIt have."""
    names = []
    for name in table.column("file_name").to_pylist():
        usual = [f"COCO_train2014_{name:0>12}.jpg", f"{name}.jpg", f"{name:0>12}.jpg"] if name.isdigit() else [name]
        names.append(images.find_any(usual, file) or usual[0])
    return table.set_column(0, "file_name", pa.array(names, pa.string()))
