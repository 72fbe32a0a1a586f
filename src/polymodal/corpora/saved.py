"""Corpora written by polymodal: a folder with an Arrow file of the rows, and a description of the columns.

Such a folder is opened by its path, like any user data, and by pyarrow or `datasets` without polymodal.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_files import open_arrow
from polymodal.corpora._types import is_string
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import UserError, one_line
from polymodal.modalities import Modality

DESCRIPTION, ROWS = "corpus.json", "rows.arrow"
CHUNK = 64  # rows that are written together


def save_corpus(
    folder: Path | str,
    about: About,
    columns: Mapping[str, Modality],
    rows: Iterable[dict[str, Any]],
    *,
    types: Mapping[str, pa.DataType] | None = None,
    label: str | None = None,
    made: Callable[[], Mapping[str, Any]] | None = None,
) -> Corpus:
    """Write rows with `key`, `split` and the columns, and open the result.

    The folder is written atomically. types: storage types of columns that differ from those of built-in corpora. label:
    column for classification. made: called at the end for provenance. Raises UserError when the folder is not empty.
    """
    folder = Path(os.path.realpath(folder))  # a link to an empty folder stays a link
    check_empty(folder)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    fields = {name: modality.arrow_type for name, modality in columns.items()} | dict(types or {})
    schema = pa.schema({"key": pa.string(), "split": pa.string()} | fields)
    try:
        with pa.ipc.new_file(str(aside / ROWS), schema) as writer:
            made_rows = iter(rows)
            while chunk := list(itertools.islice(made_rows, CHUNK)):
                writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
        described = {
            "about": dataclasses.asdict(about),
            "columns": {name: _record(modality) for name, modality in columns.items()},
            "label": label,
            "made": dict(made() if made else {}),
        }
        (aside / DESCRIPTION).write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)  # it is empty
    aside.rename(folder)
    return open_saved(folder)


def write_with_column(
    corpus: Corpus,
    folder: Path | str,
    about: About,
    column: str,
    modality: Modality,
    training: Iterable[tuple[int, Any]],
    made: Callable[[], Mapping[str, Any]] | None = None,
) -> Corpus:
    """Write a corpus with one more column: training examples that have a value in it, and all other splits without it.

    training: row indices with the stored value.
    """
    columns = {**corpus.columns, column: modality}

    def stored(row: int, split: str, value: Any) -> dict[str, Any]:
        values = {name: corpus.raw(row, name) for name in corpus.columns}
        return values | {"key": corpus.key(row), "split": split, column: value}

    def rows() -> Iterator[dict[str, Any]]:
        for row, value in training:
            yield stored(row, "train", value)
        for split, others in corpus.splits.items():
            for row in others.tolist() if split != "train" else ():
                yield stored(row, split, None)

    types = {field.name: field.type for field in corpus.table.schema if field.name in corpus.columns}
    return save_corpus(folder, about, columns, rows(), types=types, label=corpus.label, made=made)


def check_empty(folder: Path) -> None:
    """Raise UserError for a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another --out, or remove it.")


def is_saved(path: Path) -> bool:
    return (path / DESCRIPTION).is_file()


def load_description(path: Path | str) -> dict[str, Any]:
    """Load the description. Raises UserError when it is damaged."""
    try:
        described = json.loads((Path(path) / DESCRIPTION).read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise ValueError("it is no object")
        return described
    except OSError as error:
        raise UserError(f"{path} is no folder that polymodal wrote: it has no {DESCRIPTION}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged; make it again.") from error


def open_saved(path: Path | str) -> Corpus:
    """Open the corpus of such a folder, memory-mapped. Raises UserError when it is damaged."""
    path = Path(path)
    description = load_description(path)
    try:
        table = open_arrow(path / ROWS)
        columns = {name: _modality(record) for name, record in description["columns"].items()}
        about = About(**description["about"] | {"modalities": tuple(description["about"]["modalities"])})
        label = description["label"]
        _check_columns(table, columns, label)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:  # Arrow's are of these
        reason = one_line(error)
        raise UserError(f"{path} is damaged or was made by another version ({reason}); make it again.") from error
    split = np.array(table.column("split").to_pylist(), dtype=object)
    return Corpus(
        about=about,
        table=table,
        columns=columns,
        splits={name: np.flatnonzero(split == name) for name in dict.fromkeys(split) if name is not None},
        keys="key",
        label=label,
        choices={"data": str(path.resolve())},
    )


def _check_columns(table: pa.Table, columns: Mapping[str, Modality], label: Any) -> None:
    """Raise ValueError where a column is missing, or where key and split are no text."""
    missing = {"key", "split", *columns, *([] if label is None else [label])} - {*table.column_names}
    if missing:
        raise ValueError(f"{ROWS} has no column {sorted(map(str, missing))[0]}")
    for name, modality in columns.items():
        lacking = _lacking_field(table.schema.field(name).type, modality.arrow_type)
        if lacking:
            raise ValueError(f"the column {name} of {ROWS} has no field {lacking}")
    for name in ("key", "split"):
        if not is_string(table.schema.field(name).type):
            raise ValueError(f"the column {name} is no text")
    if label is not None and label not in columns:
        raise ValueError(f"the label {label} is no column")


def _lacking_field(stored: pa.DataType, wanted: pa.DataType) -> str:
    """Return the name of a field of structs, also in lists, that the stored type does not have; else an empty text."""
    if hasattr(stored, "value_type") and hasattr(wanted, "value_type"):
        return _lacking_field(stored.value_type, wanted.value_type)
    if not (pa.types.is_struct(wanted) and pa.types.is_struct(stored)):
        return ""
    for field in wanted:
        if stored.get_field_index(field.name) < 0:
            return field.name
    return next(filter(None, (_lacking_field(stored.field(one.name).type, one.type) for one in wanted)), "")


def _record(modality: Any) -> dict[str, Any]:
    """Return class and fields of a modality, for JSON."""
    values = {field.name: getattr(modality, field.name) for field in dataclasses.fields(modality)}
    stored = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return {"kind": type(modality).__name__} | stored


def _modality(record: Mapping[str, Any]) -> Modality:
    values = {name: _as_it_was(value) for name, value in record.items() if name != "kind"}
    if values.get("root"):
        values["root"] = Path(values["root"])
    kind = vars(import_module("polymodal.modalities")).get(record["kind"])
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"{record['kind']!r} is no modality")
    made: Any = kind.from_json(values) if hasattr(kind, "from_json") else kind(**values)
    return made


def _as_it_was(value: Any) -> Any:
    """Convert lists of JSON to tuples, as modalities have."""
    if isinstance(value, dict):
        return {name: _as_it_was(inner) for name, inner in value.items()}
    return tuple(_as_it_was(inner) for inner in value) if isinstance(value, list) else value
