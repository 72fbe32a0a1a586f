"""What the `.json` members of a tar file hold: the types of their fields, and columns that may be classes.

It is gathered while the members are listed, and kept with their list, so that shards that are streamed have the columns
of those that are read whole.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from polymodal.corpora._types import merged_type, type_of

CHUNK = 1000  # records whose type is inferred together
MAX_LENGTH = 200  # characters of the name of a class
FEW, MAX_CLASSES = 1000, 22_000  # different values of a column in a shard


@dataclass
class JsonMembers:
    """types: of the members by suffix; `.json` members that are objects are columns, and of the type `record`. values:
    columns of scalars, a value an example. unlisted: fields whose values are too many for classes."""

    record: pa.DataType = field(default_factory=pa.null)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        schema = pa.schema({"record": self.record} | {f".{suffix}": kind for suffix, kind in self.types.items()})
        stored = base64.b64encode(schema.serialize().to_pybytes()).decode()
        return {"types": stored, "values": self.values, "unlisted": self.unlisted}

    @classmethod
    def load(cls, stored: dict[str, Any]) -> JsonMembers:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored["types"])))
        types = {one.name[1:]: one.type for one in schema if one.name != "record"}
        return cls(schema.field("record").type, types, stored["values"], stored["unlisted"])


class JsonGatherer:
    """Gathers `JsonMembers` of one tar file."""

    def __init__(self) -> None:
        self._types: dict[str, pa.DataType] = {}
        self._record: pa.DataType = pa.null()
        self._chunk: list[dict[str, Any]] = []
        self._values: dict[str, dict[str, Any]] = defaultdict(dict)

    def add(self, key: str, suffix: str, content: bytes) -> None:
        """Add a member; one that is no JSON counts for nothing."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return
        if suffix != "json" or not isinstance(value, dict):
            kind = type_of(value) if isinstance(value, dict) else pa.string()
            self._types[suffix] = merged_type(self._types.get(suffix, pa.null()), kind)
            return
        self._chunk.append(value)
        if len(self._chunk) == CHUNK:
            self._add_chunk()
        for name, one in value.items():
            if isinstance(one, int | float) or (isinstance(one, str) and len(one) <= MAX_LENGTH):
                self._values[name][key] = one
            elif one is not None:
                self._values[name][key] = None  # is no class

    def _add_chunk(self) -> None:
        try:
            kind = pa.array(self._chunk).type
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # mixed types
            kind = type_of(self._chunk).value_type
        self._record = merged_type(self._record, kind)
        self._chunk = []

    def members(self, keys: Sequence[str]) -> JsonMembers:
        """Return what was gathered for the examples of these keys."""
        if self._chunk:
            self._add_chunk()
        gathered = JsonMembers(self._record, self._types)
        for name, by_key in self._values.items():
            different = len({repr(value) for value in by_key.values()})
            many = different > MAX_CLASSES or FEW < different >= len(by_key) / 2
            if many or any(value is None for value in by_key.values()):
                gathered.unlisted.append(name)
            else:
                gathered.values[name] = [by_key.get(key) for key in keys]
        return gathered


def fields_of_rows(members: Iterable[JsonMembers], columns: dict[str, str]) -> pa.DataType:
    """Return the type of the rows that JSON members give, whose columns are `columns` by suffix. See `values_of`."""
    kind: pa.DataType = pa.struct([])
    taken = {*columns.values()}
    for one in members:
        if pa.types.is_struct(one.record):
            named = [(f"json.{inner.name}" if inner.name in taken else inner.name, inner.type) for inner in one.record]
            kind = merged_type(kind, pa.struct(named))
        for suffix, stored in one.types.items():
            kind = merged_type(kind, pa.struct([(columns[suffix], stored)]))
    return kind


def listed_values(members: Sequence[tuple[JsonMembers, int]], column: str, taken: set[str]) -> list[Any] | None:
    """Return the values of a column in all rows; None where they are not listed. members: with the number of rows."""
    name = column.removeprefix("json.") if column.removeprefix("json.") in taken else column
    if column in taken or any(name in one.unlisted for one, _ in members):
        return None
    if not any(name in one.values for one, _ in members):
        return None
    return [value for one, count in members for value in one.values.get(name, [None] * count)]
