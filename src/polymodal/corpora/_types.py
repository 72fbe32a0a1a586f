"""Arrow types of users' columns: one plain type for the several in which libraries write the same values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_SURROGATE = re.compile(r"[\ud800-\udfff]")
TEXT_FIELD = "text"  # of a record that a scalar beside records becomes


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type without variants of storage: `large_`, `_view`, fixed sizes, dictionaries, extensions."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if is_binary(kind):
        return pa.binary() if not pa.types.is_large_binary(kind) else kind  # 2 GiB of offsets are few for images
    if is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    return kind


def short_type(kind: pa.DataType) -> str:
    """Return the name of a type for messages, without the inner part of long ones."""
    return str(kind) if len(str(kind)) < 40 else f"{str(kind)[:37]}..."


def is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def fields_of(kind: pa.DataType) -> set[str]:
    """Return the names of the fields of a struct, or of a list of structs; none for other types."""
    if is_list(kind):
        kind = kind.value_type
    return {field.name for field in kind} if pa.types.is_struct(kind) else set()


def type_of(value: Any) -> pa.DataType:
    """Return the type of a value of JSON."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, bytes):
        return pa.large_binary()
    if isinstance(value, list | tuple):
        kind = pa.null()
        for item in value:
            kind = merged_type(kind, type_of(item))
        return pa.list_(kind)
    if isinstance(value, Mapping):
        return pa.struct([(str(name), type_of(inner)) for name, inner in value.items()])
    return pa.string()


def merged_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return a type that holds the values of both: mixed scalars become text, a value beside lists a list of one, a
    scalar beside records the `text` of a record."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if is_list(one) or is_list(other):
        values = [kind.value_type if is_list(kind) else kind for kind in (one, other)]
        return pa.list_(merged_type(*values))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = merged_type(fields[field.name], field.type) if field.name in fields else field.type
        return pa.struct(list(fields.items()))
    if pa.types.is_struct(one) or pa.types.is_struct(other):
        record = one if pa.types.is_struct(one) else other
        return merged_type(record, pa.struct({TEXT_FIELD: pa.string()}))
    if is_number(one) and is_number(other):
        return pa.float64() if pa.types.is_floating(one) or pa.types.is_floating(other) else pa.int64()
    if is_binary(one) and is_binary(other):
        return pa.large_binary()
    return pa.string()


def fitted(value: Any, kind: pa.DataType) -> Any:
    """Return a value of JSON as a value of this type, which `merged_type` made of the types of all values.

    A scalar in a column of text becomes the text that JSON writes for it, without quotation marks around strings.
    Halves of characters, as texts that were cut have, become the replacement character.
    """
    if value is None or (is_string(kind) and isinstance(value, float) and value != value):  # NaN is no text
        return None
    if is_list(kind):
        return [fitted(item, kind.value_type) for item in (value if isinstance(value, list | tuple) else [value])]
    if pa.types.is_struct(kind):
        if not isinstance(value, Mapping):
            value = {TEXT_FIELD: value}
        return {field.name: fitted(value.get(field.name), field.type) for field in kind}
    if is_string(kind) and isinstance(value, str):
        return value if value.isascii() else _SURROGATE.sub("\ufffd", value)
    if is_string(kind):
        return value.decode(errors="replace") if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False)
    return value
