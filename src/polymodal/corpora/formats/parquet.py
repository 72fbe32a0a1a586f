"""Parquet, Arrow IPC and Feather files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora._arrow_files import checked
from polymodal.corpora._types import plain_type
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._tables import read_tables
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError

description = "Parquet, Arrow or Feather files"
ARROW = (".arrow", ".feather", ".ipc")
SUFFIXES = (".parquet", ".pq", *ARROW)
BATCH = 256  # rows that are converted together; they may hold images


def matches(data: DataFiles) -> Match:
    return Match.SUFFIX if data.with_suffixes(SUFFIXES) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the files. Raises UserError for a damaged one."""
    return read_tables(data, data.with_suffixes(SUFFIXES), read_file)


def read_file(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read one file, memory-mapped. Raises UserError when it is damaged."""
    try:
        return _read_arrow(file) if file.suffix.lower() in ARROW else _read_parquet(file)
    except pa.ArrowException as error:
        kind = file.suffix[1:].lower()
        raise UserError(f"{file} cannot be read as {kind}: {next(iter(str(error).splitlines()), '')}") from error


def _read_parquet(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    def convert() -> Conversion:
        opened = pq.ParquetFile(file)
        return _conversion(opened.schema_arrow, opened.iter_batches(batch_size=BATCH))

    return cached_table("parquet", [file], convert)


def _read_arrow(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Map the file itself where it can be: uncompressed IPC files, in columns of plain types."""
    mapped = pa.memory_map(str(file))
    try:
        table = pa.ipc.open_file(mapped).read_all()
    except pa.ArrowInvalid:  # a stream, as `datasets` writes, or the first version of Feather
        mapped.seek(0)
        try:
            table = pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            from pyarrow import feather

            table = feather.read_table(str(file))
    if all(field.type == plain_type(field.type) for field in table.schema):
        return checked(table), ()
    return cached_table("arrow", [file], lambda: _conversion(table.schema, checked(table).to_batches(BATCH)))


def _conversion(schema: pa.Schema, batches: object) -> Conversion:
    plain = pa.schema([(field.name, plain_type(field.type)) for field in schema], metadata=schema.metadata)
    return Conversion(plain, (_cast(batch, plain) for batch in batches))  # type: ignore[attr-defined]


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        columns.append(column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
