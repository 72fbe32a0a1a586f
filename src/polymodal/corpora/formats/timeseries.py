"""Time series with classes: `.ts` of sktime and the UEA archive, and `NAME_TRAIN.tsv` of the UCR archive."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._delimited import head_lines, lines_of
from polymodal.corpora.formats._tables import read_tables
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Series
from polymodal.modalities.modality import to_npy

description = "time series with classes: .ts (sktime, UEA) or NAME_TRAIN.tsv (UCR)"
COLUMN = "series"
_UCR = re.compile(r".*_(train|test)\.(tsv|txt|csv)$", re.IGNORECASE)
BATCH = 1000  # series that are converted together
MAX_SKIPPED = 0.1  # of the lines, until the file is refused
SCHEMA = pa.schema({COLUMN: pa.binary(), "label": pa.string()})


def matches(data: DataFiles) -> Match:
    return Match.CONTENT if any(_is_ts(file) or _is_ucr(file) for file in data.files) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the series with their classes; for regression, `target` has their numbers. Splits are `_TRAIN` and `_TEST`.

    Raises UserError for series with time stamps, and where more than a tenth cannot be read.
    """
    files = [file for file in data.files if _is_ts(file) or _is_ucr(file)]
    rows = read_tables(data, files, _read)
    return Rows(rows.table, rows.root, {COLUMN: Series()}, rows.split, skipped=rows.skipped)


def _is_ts(file: Path) -> bool:
    """Return whether a file is one of series; .ts is also a suffix of videos and of TypeScript."""
    if file.suffix.lower() != ".ts":
        return False
    lines = (line for line in head_lines(file, 500) if not line.lstrip().startswith("#"))
    return next(lines, "").lstrip().startswith("@")


def _is_ucr(file: Path) -> bool:
    if not _UCR.match(file.name):
        return False
    fields = next(iter(head_lines(file, 1)), "").replace(",", "\t").split("\t")
    return len(fields) > 3 and all(re.fullmatch(r"\s*(-?[\d.]+([eE][+-]?\d+)?|NaN)\s*", field) for field in fields)


def _read(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    table, skipped = cached_table("timeseries 2", [file], lambda: _convert(file))
    if _is_ts(file) and any(re.match(r"@targetlabel\s+true", line, re.IGNORECASE) for line in _header(file)):
        table = table.rename_columns([COLUMN, "target"])
    return table, skipped


def _header(file: Path) -> list[str]:
    header: list[str] = []
    for line in lines_of(file):
        if line.strip().lower() == "@data":
            return header
        header.append(line.strip())
    raise UserError(f"{file} has no line @data; it is cut off, or not in sktime's format.")


def _convert(file: Path) -> Conversion:
    skipped: list[Skipped] = []
    return Conversion(SCHEMA, _batches(file, skipped), skipped)


def _batches(file: Path, skipped: list[Skipped]) -> Iterator[pa.RecordBatch]:
    is_ts, start = _is_ts(file), 0
    labelled = True
    if is_ts:
        header = _header(file)
        if any(re.match(r"@timestamps\s+true", line, re.IGNORECASE) for line in header):
            raise UserError(f"{file} has a time stamp for each value, which is not read; write equally spaced values.")
        labelled = any(re.match(r"@(class|target)label\s+true", line, re.IGNORECASE) for line in header)
        start = len(header) + 1
    values: list[bytes] = []
    labels: list[str | None] = []
    failures = []
    total = 0
    for number, line in enumerate(lines_of(file), 1):
        if number <= start or not line.strip():
            continue
        total += 1
        try:
            series, label = _of_ts(line, labelled) if is_ts else _of_ucr(line)
        except ValueError as error:
            failures.append(f"{file}, line {number}: {error}")
            continue
        values.append(to_npy(series))
        labels.append(label)
        if len(values) == BATCH:
            yield _batch(values, labels)
            values, labels = [], []
    if len(failures) > MAX_SKIPPED * total:
        raise UserError(f"{len(failures):,} of {total:,} series cannot be read ({failures[0]}).")
    if failures:
        skipped.append(Skipped(len(failures), "is no series", failures[0]))
    if values:
        yield _batch(values, labels)


def _batch(values: list[bytes], labels: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, pa.binary()), pa.array(labels, pa.string())], schema=SCHEMA)


def _of_ts(line: str, labelled: bool) -> tuple[np.ndarray, str | None]:
    """Parse `1,2,?:4,5,6:label`: channels x length, NaN where a value is missing. Raises ValueError else."""
    channels = line.strip().split(":")
    label = channels.pop().strip() if labelled else None
    rows = [
        np.array([np.nan if value.strip() == "?" else float(value) for value in row.split(",")]) for row in channels
    ]
    if not rows or len({len(row) for row in rows}) > 1:
        raise ValueError("its channels differ in length" if rows else "it has no values")
    return np.stack(rows).astype(np.float32), label


def _of_ucr(line: str) -> tuple[np.ndarray, str]:
    """Parse a class and values; the NaN at the end of a shorter series is none of them."""
    label, *values = line.replace(",", "\t").split("\t")
    series = np.array([float(value) for value in values], np.float32)
    valid = np.flatnonzero(~np.isnan(series))
    if not len(valid):
        raise ValueError("it has no values")
    return series[None, : valid[-1] + 1], f"{float(label):g}"
