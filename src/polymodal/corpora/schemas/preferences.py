"""Preference pairs in columns: `prompt` or `question` with `chosen` and `rejected`.

Each is a text (RLAIF-V, MMPR) or a list of messages (TRL); both answers may hold the prompt instead of a column.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_list, is_string
from polymodal.corpora.schemas._columns import field, inner, joined, lists_of_one, records
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Preferences

rank = 0
option = ""
NAME = "preferences"
PROMPTS = ("prompt", "question", "query", "instruction", "input")
# Fields of a message, and what they are called in `Preferences`.
MESSAGES = ({"role": "role", "content": "content"}, {"from": "role", "value": "content"})


def find(view: View) -> Found | None:
    """Find the columns `chosen` and `rejected`, and the prompt."""
    chosen, rejected = (view.usual((name,)) for name in ("chosen", "rejected"))
    if not chosen or not rejected or NAME in view.table.column_names:
        return None
    columns = {"chosen": chosen[0], "rejected": rejected[0]}
    if not all(_is_said(view.type(name)) for name in columns.values()):
        return None
    prompts = [name for name in view.usual(PROMPTS) if _is_said(view.type(name))]
    if prompts:
        columns["question"] = prompts[0]
    elif is_string(view.type(chosen[0])):
        return None  # an answer to nothing

    def make(stored: Mapping[str, pa.Array]) -> pa.Array:
        values = {name: _stored(stored[column]) for name, column in columns.items()}
        missing = pa.array([False] * len(values["chosen"]))
        for column in columns.values():
            missing = pc.or_(missing, stored[column].is_null())
        return lists_of_one(records(values, missing))

    uses = tuple(columns.values())
    return Found({NAME: FoundColumn(Preferences(), lambda table: joined(table, uses, make))}, uses)


def _is_said(kind: pa.DataType) -> bool:
    return is_string(kind) or (is_list(kind) and any(fields_of(kind) >= {*fields} for fields in MESSAGES))


def _stored(values: pa.Array) -> pa.Array:
    if is_string(values.type):
        return values
    fields = next(fields for fields in MESSAGES if fields_of(values.type) >= {*fields})
    return inner(
        values,
        lambda messages: pa.StructArray.from_arrays([field(messages, name) for name in fields], list(fields.values())),
    )
