"""Classes: a column of class names or indices, for zero-shot classification and probes."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_string
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Category

rank = 2
option = "label"
USUAL = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "cls")
MAX_CLASSES = 22_000  # ImageNet-21k has 21,841


def find(view: View) -> Found | None:
    """Find the class column: a named one, or one of a usual name whose values repeat."""
    if view.named is not None:
        if not _is_label(view, view.named):
            raise view.refuse("label")
        return _found(view, view.named)
    names = [name for name in view.usual(USUAL) if _is_label(view, name)]
    return _found(view, names[0]) if names else None


def _is_label(view: View, name: str) -> bool:
    kind = view.type(name)
    whole = pa.types.is_floating(kind) and _are_whole(view.table.column(name))  # pandas' integers beside missing ones
    if not (is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or whole):
        return False
    count = pc.count_distinct(view.table.column(name)).as_py()
    return 1 < count <= MAX_CLASSES and (count < 0.5 * len(view.table) or name == view.named)


def _found(view: View, name: str) -> Found:
    """Class names are those of `datasets`' ClassLabel where the file has them, else the values in their order."""
    whole = pa.types.is_floating(view.type(name))
    listed = _class_names(view.table.schema, name)
    if listed:

        def named(table: pa.Table) -> Any:
            indices = _as_integers(table.column(name).combine_chunks())
            valid = pc.and_(pc.greater_equal(indices, 0), pc.less(indices, len(listed)))  # -1: not labelled
            return pa.array(listed).take(pc.if_else(valid, indices, None))

        kind = FoundColumn(Category(tuple(listed)), named)
    else:
        column = _as_integers(view.table.column(name)) if whole else view.table.column(name)
        values = pc.unique(column).drop_null().to_pylist()
        classes = tuple(_written(value) for value in sorted(values))

        def written(table: pa.Table) -> Any:
            return pc.cast(_as_integers(table.column(name)) if whole else table.column(name), pa.string())

        kind = FoundColumn(Category(classes), None if is_string(view.type(name)) else written)
    names = kind.modality.names  # type: ignore[attr-defined]
    readable = {one: (one.replace("_", " "),) for one in names} if not all(one.isdigit() for one in names) else {}
    return Found({name: kind}, (name,), label=name, prompts=readable)


def _are_whole(column: pa.ChunkedArray) -> bool:
    stated = column.filter(pc.fill_null(pc.invert(pc.is_nan(column)), False))
    return pc.all(pc.and_(pc.is_finite(stated), pc.equal(pc.floor(stated), stated))).as_py() is True


def _as_integers(column: Any) -> Any:
    """Return numbers as integers; NaN, by which pandas writes missing ones, as missing."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return pc.cast(column, pa.int64())


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _class_names(schema: pa.Schema, name: str) -> list[str] | None:
    """Return the names that `datasets` keeps in the metadata of a table."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[name]["names"])
    except (KeyError, TypeError, ValueError):
        return None
