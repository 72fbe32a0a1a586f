"""Stored values made of several columns, which Arrow puts together without copying them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_list, is_string
from polymodal.corpora.schemas._schema import View
from polymodal.modalities.conversation import PLACEHOLDER


def joined(table: pa.Table, columns: tuple[str, ...], make: Callable[[Mapping[str, pa.Array]], pa.Array]) -> Any:
    """Return what `make` gives for the columns of each part of a table that is one piece in memory."""
    part = table.select(list(columns))
    batches = part.to_batches() or [pa.RecordBatch.from_pylist([], schema=part.schema)]
    return pa.chunked_array([make(dict(zip(batch.schema.names, batch.columns, strict=True))) for batch in batches])


def records(fields: Mapping[str, pa.Array], missing: pa.Array) -> pa.Array:
    """Return records of these fields. missing: where there is none."""
    return pa.StructArray.from_arrays(list(fields.values()), list(fields), mask=missing)


def of_one(values: pa.Array) -> pa.Array:
    """Return a list of one for each value, which is missing where the value is, or is an empty text. `ListArray` has no
    masks for parts."""
    if is_string(values.type):
        values = pc.if_else(pc.equal(values, ""), None, values)
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1), pa.int32()), values)


def lists_of_one(values: pa.Array) -> pa.Array:
    """Return lists of one record; where the record is missing, the list is, too."""
    missing = values.is_null()
    ends = np.concatenate([[0], np.cumsum(~missing.to_numpy(zero_copy_only=False))])
    offsets = pa.array(ends, pa.int32(), mask=np.append(missing.to_numpy(zero_copy_only=False), False))
    return pa.ListArray.from_arrays(offsets, values.drop_null())


def inner(lists: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Return lists of the changed values. A missing list becomes an empty one."""
    if not pa.types.is_list(lists.type) and not pa.types.is_large_list(lists.type):
        lists = lists.cast(pa.list_(lists.type.value_type))
    kind = pa.LargeListArray if pa.types.is_large_list(lists.type) else pa.ListArray
    return kind.from_arrays(lists.offsets, change(lists.values))


def field(values: pa.Array, name: str) -> pa.Array:
    return pc.struct_field(values, name)


def without_places(texts: pa.Array) -> pa.Array:
    """Return texts without placeholders of an image, which stands before them in any case."""
    if not pc.any(pc.match_substring(texts, PLACEHOLDER)).as_py():
        return texts
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, rf"\s*{PLACEHOLDER}\s*", " "))


def answers_are_records(view: View) -> bool:
    """Return whether columns `chosen` and `rejected` hold one message each: the conversation beside them is the prompt
    of preferences (LLaMA-Factory)."""
    answers = view.usual(("chosen", "rejected"))
    return len(answers) == 2 and all(pa.types.is_struct(view.type(name)) for name in answers)


def element_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a list, or the type itself."""
    return kind.value_type if is_list(kind) else kind
