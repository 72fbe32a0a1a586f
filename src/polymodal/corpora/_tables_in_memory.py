"""Tables of Python, of the several libraries that have them, as rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from polymodal.corpora._types import fitted, type_of
from polymodal.corpora.formats._data_files import SPLIT_NAMES
from polymodal.corpora.formats._tables import concatenated
from polymodal.corpora.rows import Rows
from polymodal.corpora.user_files import first_line
from polymodal.errors import UserError
from polymodal.modalities.image import encoded

BATCH = 1000  # rows of an IterableDataset that are read together
KINDS = (
    "a datasets.Dataset, a pandas or polars frame, a pyarrow table, a list of dicts, a dict of columns, or a dict of "
    "such tables by split"
)


def rows_of(data: Any, root: Path) -> Rows:
    """Return the rows of one table, or of tables by split. See `KINDS`. Raises UserError for anything else."""
    if not (isinstance(data, Mapping) and data and all(_is_table(part) for part in data.values())):
        table = concatenated([_table(data)])
        _refuse_empty(table)
        return Rows(table, root)
    tables = {str(name): _table(part) for name, part in data.items()}
    table = concatenated(list(tables.values()))
    _refuse_empty(table)
    if [*tables] == ["train"]:
        return Rows(table, root)
    names = [SPLIT_NAMES.get(name.strip().lower(), name) for name in tables]
    return Rows(table, root, split=np.repeat(names, [part.num_rows for part in tables.values()]))


def _refuse_empty(table: pa.Table) -> None:
    if not table.num_rows:
        raise UserError("The table has no rows.")


def _is_table(data: Any) -> bool:
    is_records = isinstance(data, Sequence) and len(data) and all(isinstance(one, Mapping) for one in data)
    of_library = _is_dataset(data) or _library(data) == "polars"
    return bool(of_library or hasattr(data, "__arrow_c_stream__") or is_records)


def _is_dataset(data: Any) -> bool:
    return _library(data) == "datasets"


def _library(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def _table(data: Any) -> pa.Table:
    try:
        if isinstance(data, pa.RecordBatch):
            return pa.Table.from_batches([data])
        if isinstance(data, pa.Table):
            return data
        if _is_dataset(data):
            return _of_dataset(data)
        if _library(data) == "pandas":
            return _of_pandas(data)
        if _library(data) == "polars":
            return _of_polars(data)
        if hasattr(data, "__arrow_c_stream__"):
            return pa.table(data)
        if isinstance(data, Mapping):
            columns = {str(name): list(values) for name, values in data.items()}
            lengths = {name: len(values) for name, values in columns.items()}
            if len({*lengths.values()}) > 1:
                listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
                raise UserError(f"The columns of the dict differ in length: {listed}.")
            return _of_records([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(f"The {type(data).__name__} cannot be read as a table: {first_line(error)}") from error
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if not all(isinstance(record, Mapping) for record in data):
            raise UserError(f"A list of dicts is needed; the list has a {_first_kind(data)}.")
        return _of_records(data)
    raise UserError(f"A {type(data).__name__} is no table that is read; give a path, {KINDS}.")


def _first_kind(data: Sequence[Any]) -> str:
    return next(type(one).__name__ for one in data if not isinstance(one, Mapping))


def _of_dataset(data: Any) -> pa.Table:
    """Return the Arrow table of a Dataset, which stays where it is; an IterableDataset is read to its end."""
    described = data.features.arrow_schema.metadata if data.features is not None else None
    if hasattr(data, "data"):
        table = data.data.table if data._indices is None else data.with_format("arrow")[:]
    else:
        tables = list(data.with_format("arrow").iter(BATCH))
        if not tables:
            raise UserError("The data set has no rows.")
        table = concatenated(tables)
    return table.replace_schema_metadata(described or table.schema.metadata)


def _of_pandas(data: Any) -> pa.Table:
    try:
        return pa.Table.from_pandas(data, preserve_index=False)
    except (pa.ArrowException, TypeError):  # mixed types in a column
        return _of_records(data.to_dict("records"))


def _of_polars(data: Any) -> pa.Table:
    """Return the Arrow table of a frame or a series. A LazyFrame is collected; columns of Python objects, such as PIL
    images, which polars leaves out, and of arrays of pixels are read as those of a list of dicts."""
    if hasattr(data, "collect"):
        try:
            data = data.collect()
        except Exception as error:  # polars has errors of its own, and those of the system
            raise UserError(f"The LazyFrame cannot be collected: {first_line(error)}") from error
    frame = data.to_frame() if hasattr(data, "to_frame") else data
    kinds = dict(zip(frame.columns, frame.dtypes, strict=True))
    pixels = [name for name, kind in kinds.items() if len(getattr(kind, "shape", ())) == 3]
    if not pixels and "Object" not in map(str, kinds.values()):
        return pa.table(frame)
    rows = frame.drop(pixels).to_dicts()
    for name in pixels:
        for row, array in zip(rows, frame[name].to_numpy(), strict=True):
            row[name] = array
    return _of_records(rows)


def _of_records(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    plain = [_plain(record) for record in records]
    kind = type_of(plain).value_type
    if not pa.types.is_struct(kind):
        return pa.table({})
    return pa.Table.from_struct_array(pa.array([fitted(record, kind) for record in plain], kind))


def _plain(value: Any) -> Any:
    """Return a value as JSON would have it; images, arrays of pixels among them, and bytes as bytes."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, PILImage.Image):
        return encoded(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (3, 4):
        return encoded(PILImage.fromarray(value))
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
