"""Classes: a column of class names or indices, or one column of 0 and 1 a class, for classification and probes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_string
from polymodal.corpora.schemas._class_names import column_of_class_names, has_class_names, one_hot
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.corpora.schemas._tabular import levels
from polymodal.modalities import Category

rank = 2
option = "label"
# Of any values; names of the second list may also head texts, so that their values have to look like class names.
ALWAYS = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "cls")
BY_VALUES = (
    "class_label", "label_name", "category_name", "class_id", "label_id", "category_id", "breed", "species",
    "diagnosis", "dx", "disease", "pathology", "variety", "cultivar", "emotion", "sentiment", "genre",
    "klasse", "kategorie", "classe", "clase", "categoria",
)  # fmt: skip
USUAL = (*ALWAYS, *BY_VALUES)
MAX_CLASSES = 22_000  # ImageNet-21k has 21,841


def find(view: View) -> Found | None:
    """Find the class column: a named one, or one of a usual name whose values repeat; else, beside media without texts,
    the only column of strings if these look like class names, or columns of 0 and 1 with a single 1 in each row."""
    if view.named is not None:
        if not _is_label(view, view.named):
            raise view.refuse("label")
        return _found(view, view.named)
    names = [name for name in view.usual(USUAL) if _is_label(view, name)]
    names = [name for name in names if name.lower() in ALWAYS or has_class_names(view, name)]
    if names:
        return _with_note(_found(view, names[0]), names[0]) if names[0].lower() in BY_VALUES else _found(view, names[0])
    if view.whole is None and (name := column_of_class_names(view)) and _is_label(view, name):
        return _with_note(_found(view, name), name)
    return one_hot(view)


def _with_note(result: Found, name: str) -> Found:
    count = len(result.columns[name].modality.names)  # type: ignore[attr-defined]
    note = f"'{name}' is read as the class ({count:,} classes); --text-column {name} trains on its values as captions."
    return replace(result, notes=(note,))


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
        column = view.table.column(name)
        blanks = is_string(column.type) and pc.any(pc.match_substring_regex(column, r"^\s|\s$")).as_py() is True
        column = _as_integers(column) if whole else levels(column) if blanks else column
        values = pc.unique(column).drop_null().to_pylist()
        classes = tuple(_written(value) for value in sorted(values))

        def written(table: pa.Table) -> Any:
            if blanks:
                return levels(table.column(name))
            return pc.cast(_as_integers(table.column(name)) if whole else table.column(name), pa.string())

        kind = FoundColumn(Category(classes), None if is_string(view.type(name)) and not blanks else written)
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
