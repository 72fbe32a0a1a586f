"""Rows of annotation files that name images: with paths of the images, joined over files, split by file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, split_of, splits_of
from polymodal.corpora.formats._image_files import ImageFiles, missing_images
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Image, Modality

CHUNK = 10_000  # records that are converted together


def records_of(file: Path, held: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of an object of JSON; an empty one where it lacks. Raises UserError for what is no list of
    objects."""
    if not isinstance(held, dict):
        raise UserError(f"{file} is no JSON object with a list `{name}`.")
    records = held.get(name) or []
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"`{name}` of {file} is no list of records.")
    return records


def annotation_table(
    kind: str, files: Sequence[Path], convert: Callable[[], Conversion]
) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Return the table of annotation files, converted once. Raises UserError for values of unexpected types."""
    try:
        return cached_table(kind, files, convert)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, pa.ArrowException) as error:
        names = " or ".join(file.name for file in files[:2])
        raise UserError(f"A value in {names} has another type than in files of the form '{kind}': {error}.") from error


def chunks_of(records: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield records as batches."""
    iterator = iter(records)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        columns = [pa.array([record.get(field.name) for record in chunk], field.type) for field in schema]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass
class Annotations:
    """Tables of annotation files with a column `file_name`. columns: modalities of the other columns. splits: of the
    rows of each table, where the tables state them."""

    columns: dict[str, Modality]
    files: list[Path] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    splits: list[np.ndarray] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: Path, table: pa.Table, skipped: Iterable[Skipped] = ()) -> None:
        self.files.append(file)
        self.tables.append(table)
        self.skipped += skipped

    def add_readable(self, files: Sequence[Path], read: Callable[[Path], tuple[pa.Table, tuple[Skipped, ...]]]) -> None:
        """Add the files; damaged JSON is skipped and named. Raises UserError where all are, and for what is no
        annotation."""
        errors: list[UserError] = []
        for file in files:
            try:
                self.add(file, *read(file))
            except UserError as error:
                if not isinstance(error.__cause__, JSONDecodeError):
                    raise
                errors.append(error)
                self.skipped.append(Skipped(1, f"is a file that cannot be read: {error}", file.name))
        if len(errors) == len(files):
            raise errors[0]

    def join(self, other: Annotations) -> None:
        """Add the annotations of others, which may be of the same images."""
        self.columns |= other.columns
        self.files += other.files
        self.tables += other.tables
        self.splits += other.splits
        self.skipped += other.skipped
        self.notes += other.notes


def annotated_rows(data: DataFiles, read: Annotations, images: ImageFiles) -> Rows:
    """Return the rows of annotation files: `image`, the path of the image that `file_name` names, and the columns.

    Rows of the same image in one split are one row, with what all files have in each column; what a file repeats of
    another one counts once. Splits are those that the tables state, else those of file names. Rows whose image is
    missing are skipped. Raises UserError when all are.
    """
    files, tables, columns, split = read.files, read.tables, read.columns, read.splits
    stated = splits_of(files, data.root)
    joined: dict[tuple[str, str], dict[str, list[tuple[int, int]]]] = {}
    missing, example, example_file, total = 0, "", files[0], 0
    for number, (file, table) in enumerate(zip(files, tables, strict=True)):
        present = [name for name in columns if name in table.column_names]
        splits_of_rows = split[number] if split else itertools.repeat(stated[file] if stated else "")
        for row, (name, of_split) in enumerate(
            zip(table.column("file_name").to_pylist(), splits_of_rows, strict=False)
        ):
            total += 1
            path = images.find(name, file)
            if path is None:
                missing, example, example_file = missing + 1, example or name, file
                continue
            places = joined.setdefault((of_split, path), {})
            for column in present:
                places.setdefault(column, []).append((number, row))
    skipped = missing_images(missing, total, example, images, example_file)
    splits = np.array([of_split for of_split, _ in joined], dtype=object)
    table = pa.table(
        {"image": pa.array([path for _, path in joined], pa.string())}
        | {name: _taken(tables, name, [places.get(name, ()) for places in joined.values()]) for name in columns}
    )
    states = (stated is not None or bool(split)) and "train" in splits and len({*splits}) > 1
    notes: tuple[str, ...] = ()
    without = [file for file in files if not split and split_of(file, data.root) is None]
    if stated is None and 0 < len(without) < len(files):
        notes = (f"{without[0].name} names no split (train, val, test), so all rows are split by their content.",)
    if len({*splits}) == 1 and splits[0] not in ("", "train"):
        notes = (f"All images that are there are of the split '{splits[0]}'; they are split by their content.",)
    return Rows(
        table,
        images.root,
        {"image": Image(images.root), **columns},
        splits if states else None,
        keys="image" if len({path for _, path in joined}) == len(joined) else None,
        skipped=(*read.skipped, *skipped),
        notes=(*read.notes, *notes),
    )


def _taken(tables: Sequence[pa.Table], name: str, places: Sequence[Sequence[tuple[int, int]]]) -> pa.ChunkedArray:
    """Return the lists of a column at the places (table, row) of each row, joined; missing where there is none."""
    present = [table.column(name) if name in table.column_names else None for table in tables]
    stored = next(column for column in present if column is not None).type
    parts = [pa.chunked_array([], stored) if column is None else column for column in present]
    offsets = np.cumsum([0, *map(len, parts)])
    several = [of_row for of_row in places if len(of_row) > 1]
    numbers = iter(range(int(offsets[-1]), int(offsets[-1]) + len(several)))
    merged = pa.array([_merged([parts[table][row].as_py() for table, row in of_row]) for of_row in several], stored)
    rows = [
        next(numbers) if len(of_row) > 1 else int(offsets[of_row[0][0]]) + of_row[0][1] if of_row else None
        for of_row in places
    ]
    chunks = [chunk for part in parts for chunk in part.chunks]
    return pa.chunked_array([*chunks, merged], stored).take(pa.array(rows, pa.int64()))


def _merged(lists: Sequence[list[Any] | None]) -> list[Any] | None:
    """Return the values of all lists, without those of a list that an earlier one has, too."""
    merged: list[Any] = []
    for values in lists:
        earlier = {repr(value) for value in merged}
        merged += [value for value in values or () if repr(value) not in earlier]
    return merged if any(values is not None for values in lists) else None
