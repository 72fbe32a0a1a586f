"""Files that hold one example each, converted to stored values once, in the cache of the user."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.rows import Rows
from polymodal.errors import UnreadableExample, UserError

BATCH = 64  # files that are converted together
FILE = "file"  # column of paths, which name the rows


def converted_column(
    rows: Rows, column: str, kind: str, convert: Callable[[Path], bytes], files: Sequence[Path] | None = None
) -> tuple[pa.Table, np.ndarray, tuple[Skipped, ...]]:
    """Return the table with stored values in place of the paths of a column, which go to `file`; the rows that are
    left; and what is skipped.

    kind: name of the conversion with its version. convert: raises UnreadableExample for a file that cannot be read.
    files: those of the rows, instead of the paths of the column. Raises UserError where none can be read.
    """
    paths = list(files) if files is not None else [rows.root / name for name in rows.table.column(column).to_pylist()]
    present = [number for number, path in enumerate(paths) if os.path.isfile(path)]
    skipped: list[Skipped] = []
    if len(present) < len(paths):
        missing = next(path for path in paths if not os.path.isfile(path))
        skipped.append(Skipped(len(paths) - len(present), "names a file that does not exist", str(missing)))
    if not present:
        raise UserError(f"None of the {len(paths):,} files that {rows.root} names is there.")
    chosen = [paths[number] for number in present]
    values, left_out = cached_table(kind, chosen, partial(_conversion, chosen, convert))
    if values.num_rows == 0:
        raise UserError(f"None of the {len(chosen):,} files can be read: {left_out[0].example}.")
    kept = np.array(present)[values.column("row").to_numpy()]
    table = rows.table.take(kept)
    place = table.column_names.index(column)
    table = table.append_column(FILE, table.column(column)) if FILE not in table.column_names else table
    return table.set_column(place, column, values.column("value")), kept, (*skipped, *left_out)


def _conversion(files: Sequence[Path], convert: Callable[[Path], bytes]) -> Conversion:
    skipped: list[Skipped] = []
    schema = pa.schema({"row": pa.int64(), "value": pa.binary()})
    return Conversion(schema, _batches(files, convert, schema, skipped), skipped)


def _batches(
    files: Sequence[Path], convert: Callable[[Path], bytes], schema: pa.Schema, skipped: list[Skipped]
) -> Iterator[pa.RecordBatch]:
    failures: list[str] = []
    for start in range(0, len(files), BATCH):
        numbers, values = [], []
        for number, file in enumerate(files[start : start + BATCH], start):
            try:
                values.append(convert(file))
                numbers.append(number)
            except UnreadableExample as error:
                failures.append(f"{file}: {error}")
        yield pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64()), pa.array(values, pa.binary())], schema=schema)
    if failures:
        skipped.append(Skipped(len(failures), "cannot be read", failures[0]))
