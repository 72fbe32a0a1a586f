"""GQA (Hudson and Manning 2019): `train_balanced_questions.json`, an object of questions by id, beside `images/`."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._annotated import Annotations, annotated_rows, annotation_table, chunks_of
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._json_head import json_head, json_heads
from polymodal.corpora.formats.json import load
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Questions

description = "GQA: JSON files of questions by id, beside the images"
SCHEMA = pa.schema({"file_name": pa.string(), "questions": Questions().arrow_type})
NOT_READ = ("semantic", "entailed", "equivalent", "annotations", "semanticStr", "groups")


def matches(data: DataFiles) -> Match:
    """Match by the records at the beginning of JSON files."""
    return Match.CONTENT if _files(data) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read questions with their answers, a row an image; those without answers are skipped."""
    files = _files(data, every=True)
    if not files:
        raise UserError(f"{data.given[0]} has no JSON file of GQA, with `imageId`, `question` and `answer` by id.")
    annotations = Annotations({"questions": Questions()})
    for file in files:
        if not _has_answers(file):
            annotations.notes.append(f"{file.name} is not read: its questions have no answers.")
            continue
        annotations.add(file, *annotation_table("gqa", [file], partial(_convert, file)))
    if not annotations.files:
        raise UserError(f"No question of {files[0]} has an answer.")
    return annotated_rows(data, annotations, ImageFiles.of(data))


def _has_answers(file: Path) -> bool:
    """Return whether a question at the beginning of a file has an answer; those of the test sets have none."""
    return any("answer" in one for one in json_head(file).values() if isinstance(one, dict))


def _files(data: DataFiles, every: bool = False) -> list[Path]:
    files = []
    for file, head in json_heads(data, every):
        first = next(iter(head.values()), None) if isinstance(head, dict) else None
        if isinstance(first, dict) and {"imageId", "question"} <= {*first}:
            files.append(file)
    return files


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    if "imageId" in record:
        for name in NOT_READ:
            record.pop(name, None)
    return record


def _convert(file: Path) -> Conversion:
    by_image: dict[str, list[dict[str, str]]] = defaultdict(list)
    without: list[str] = []
    for key, one in load(file, _slim).items():
        if not isinstance(one, dict) or "imageId" not in one or not isinstance(one.get("question"), str):
            raise UserError(f"{file} has no `imageId` and `question` for '{key}'.")
        if not isinstance(one.get("answer"), str):
            without.append(key)
            continue
        types = one.get("types")
        kind = str(types.get("structural") or "") if isinstance(types, dict) else ""
        stored = {"question": one["question"], "answer": one["answer"], "kind": kind, "rationale": ""}
        by_image[f"{one['imageId']}.jpg"].append(stored)
    if not by_image:
        raise UserError(f"No question of {file} has an answer.")
    skipped = (
        [Skipped(len(without), "is a question without an answer", f"{file.name}, {without[0]}")] if without else []
    )
    records = ({"file_name": name, "questions": stored} for name, stored in by_image.items())
    return Conversion(SCHEMA, chunks_of(records, SCHEMA), skipped)
