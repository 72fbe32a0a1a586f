"""Tar files of webdataset: consecutive members of one name before the first dot are an example."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora._types import fitted, is_binary, is_string, merged_type, type_of
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._tables import read_tables
from polymodal.corpora.formats._tar import TarExample, columns_of, index_tar, is_small, lacking, values_of
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Image, Modality, Text
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "webdataset .tar files"
SUFFIXES = (".tar", ".tar.gz", ".tgz")
CHUNK, CHUNK_BYTES = 256, 64 << 20  # examples, and bytes, that are converted together


def matches(data: DataFiles) -> Match:
    return Match.SUFFIX if data.with_suffixes(SUFFIXES) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the tar files. Raises UserError for a damaged one."""
    rows = read_tables(data, data.with_suffixes(SUFFIXES), read_tar)
    columns = {*rows.table.column_names}
    apart = sorted(column for column in columns if f".{column}" in IMAGE_SUFFIXES)
    if "image" in columns and len(apart) > 1:
        raise UserError(
            f"Some examples of {data.given[0]} have one image, others several ({', '.join(apart)}); give every image "
            "the same suffix in all shards."
        )
    return replace(rows, columns=member_modalities(rows.table.schema))


def member_modalities(schema: pa.Schema) -> dict[str, Modality]:
    """Return the modalities that the suffixes of members state: `.txt` is the caption, whatever a `.json` has."""
    modalities: dict[str, Modality] = {}
    if "image" in schema.names and is_binary(schema.field("image").type):
        modalities["image"] = Image()
    if "text" in schema.names and is_string(schema.field("text").type):
        modalities["text"] = Text()
    return modalities


def read_tar(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read one tar file; of a damaged one, the whole examples. Raises UserError when it has none, see `index_tar`."""

    def convert() -> Conversion:
        with _opened(file) as opened:
            index = index_tar(opened, str(file))
        if not index.examples:
            raise UserError(f"{file} has no rows.")
        columns = columns_of(index.examples)
        skipped = [*index.damage_report(str(file)), *lacking(index.examples, columns, str(file))]
        kind = _type(file, index.examples, columns)
        return Conversion(pa.schema(list(kind)), _batches(file, index.examples, columns, kind), skipped)

    return cached_table("tar", [file], convert)


def _opened(file: Path) -> BinaryIO:
    """Open a file, decompressing it where its first bytes, not its name, say that it is compressed."""
    try:
        opened = file.open("rb")
        compressed = opened.read(2) == b"\x1f\x8b"
        opened.seek(0)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    return gzip.open(opened) if compressed else opened  # type: ignore[return-value]


def _type(file: Path, examples: list[TarExample], columns: Mapping[str, str]) -> pa.DataType:
    """Return the type of the rows, for which only JSON is read."""
    kind: pa.DataType = pa.null()
    kinds: set[frozenset[str]] = set()
    with _opened(file) as opened:
        for key, members in examples:
            small = {suffix: _content(opened, place) for suffix, place in members.items() if is_small(suffix)}
            if small or frozenset(members) not in kinds:
                kinds.add(frozenset(members))
                empty = {suffix: b"" if isinstance(place, list) else place for suffix, place in members.items()}
                kind = merged_type(kind, type_of(values_of(key, empty | small, columns)))
    return kind


def _batches(
    file: Path, examples: list[TarExample], columns: Mapping[str, str], kind: pa.DataType
) -> Iterator[pa.RecordBatch]:
    chunk: list[Any] = []
    size = 0
    with _opened(file) as opened:
        for key, members in examples:
            contents = {suffix: _content(opened, place) for suffix, place in members.items()}
            chunk.append(fitted(values_of(key, contents, columns), kind))
            size += sum(map(len, contents.values()))
            if len(chunk) == CHUNK or size > CHUNK_BYTES:
                yield pa.RecordBatch.from_struct_array(pa.array(chunk, kind))
                chunk, size = [], 0
    if chunk:
        yield pa.RecordBatch.from_struct_array(pa.array(chunk, kind))


def _content(file: BinaryIO, place: Any) -> Any:
    if not isinstance(place, list):
        return place
    offset, size = place
    file.seek(offset)
    return file.read(size)
