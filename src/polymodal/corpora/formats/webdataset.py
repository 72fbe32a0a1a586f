"""Tar files of webdataset: consecutive members of one name before the first dot are an example."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora._types import fitted, merged_type, type_of
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._tables import read_tables
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "webdataset .tar files"
SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXTS = ("txt", "text", "caption", "cls")
CHUNK = 256  # examples that are converted together


def matches(data: DataFiles) -> Match:
    return Match.SUFFIX if data.with_suffixes(SUFFIXES) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the tar files. Raises UserError for a damaged one."""
    return read_tables(data, data.with_suffixes(SUFFIXES), read_tar)


def read_tar(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read one tar file. Raises UserError when it is damaged, or has the same member twice."""

    def convert() -> Conversion:
        kind: pa.DataType = pa.null()
        for example in _examples(file, with_bytes=False):
            kind = merged_type(kind, type_of(example))
        if pa.types.is_null(kind):
            raise UserError(f"{file} has no rows.")
        return Conversion(pa.schema(list(kind)), _batches(file, kind))

    return cached_table("webdataset", [file], convert)


def _batches(file: Path, kind: pa.DataType) -> Iterator[pa.RecordBatch]:
    chunk: list[Any] = []
    for example in _examples(file, with_bytes=True):
        chunk.append(fitted(example, kind))
        if len(chunk) == CHUNK:
            yield pa.RecordBatch.from_struct_array(pa.array(chunk, kind))
            chunk = []
    if chunk:
        yield pa.RecordBatch.from_struct_array(pa.array(chunk, kind))


def _examples(file: Path, with_bytes: bool) -> Iterator[dict[str, Any]]:
    """Yield the examples. with_bytes: the contents of members that are neither text nor JSON; else empty bytes."""
    example: dict[str, Any] = {}
    done: set[str] = set()
    try:
        with tarfile.open(file, "r|*") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                stem, _, suffix = name.name.partition(".")
                key = str(name.parent / stem)
                if example and example["__key__"] != key:
                    yield example
                    done.add(example["__key__"])
                    example = {}
                if key in done:
                    raise UserError(f"{file} has examples of the name '{key}' in two places; make its names unique.")
                field = column_of(suffix.lower())
                opened = tar.extractfile(member)
                assert opened is not None
                wanted = with_bytes or field in ("text", "label") or field.endswith("json")
                content = opened.read() if wanted else b""
                example = (example or {"__key__": key}) | _values(field, content)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read as webdataset: {error}") from error
    if example:
        yield example


def column_of(suffix: str) -> str:
    """Return the column of a member by its suffix: `image` for all suffixes of images, `text` for captions."""
    if f".{suffix}" in IMAGE_SUFFIXES:
        return "image"
    return {"txt": "text", "caption": "text", "cls": "label"}.get(suffix, suffix)


def _values(field: str, content: bytes) -> dict[str, Any]:
    if field in ("text", "label"):
        return {field: content.decode("utf-8", errors="replace").strip()}
    if field == "json":
        try:
            record = json.loads(content)
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {"json": json.dumps(record)}
    return {field: content}
