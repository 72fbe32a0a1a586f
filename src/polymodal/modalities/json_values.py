"""Columns whose values are of several types, such as answers that are numbers or words: `datasets` stores each value
as JSON text."""

from __future__ import annotations

import functools
import json
from typing import Any

import pyarrow as pa


@functools.cache
def has_json(kind: pa.DataType) -> bool:
    """Return whether a type is, or contains, JSON texts."""
    return _is_json(kind) or any(has_json(kind.field(index).type) for index in range(kind.num_fields))


def parsed(value: Any, kind: pa.DataType) -> Any:
    """Replace the JSON texts of a value by what they stand for."""
    if value is None or not has_json(kind):
        return value
    if _is_json(kind):
        return json.loads(value)
    if isinstance(value, dict):
        return {name: parsed(one, kind.field(name).type) for name, one in value.items()}
    return [parsed(one, kind.value_type) for one in value]


def _is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"
