"""Preference pairs in columns: `prompt` or `question` with `chosen` and `rejected`.

Each is a text (RLAIF-V, MMPR) or a list of messages (TRL), or both answers are one message (LLaMA-Factory); both
answers may hold the prompt instead of a column, also as a transcript (`\\n\\nHuman: ... \\n\\nAssistant: ...`,
HH-RLHF).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_list, is_string
from polymodal.corpora.schemas._columns import answers_are_records, field, inner, joined, lists_of_one, of_one, records
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Preferences

rank = 0
option = ""
NAME = "preferences"
PROMPTS = ("prompt", "question", "query", "instruction", "input")
TURNS = ("conversations", "messages")  # the prompt of answers that are one message each (LLaMA-Factory)
ABOUT = ("instruction", "input")  # Alpaca's form of a prompt
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(f"{HUMAN}|{ASSISTANT}")
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
    usual = (*PROMPTS, *TURNS) if answers_are_records(view) else PROMPTS
    prompts = [name for name in view.usual(usual) if _is_said(view.type(name))]
    if prompts:
        columns["question"] = prompts[0]
    elif is_string(view.type(chosen[0])):
        if not all(_is_transcript(text) for name in columns.values() for text in view.texts(name)):
            return None  # an answer to nothing
        both = tuple(columns.values())
        return Found({NAME: FoundColumn(Preferences(), lambda table: joined(table, both, _of_both))}, both)

    about = (
        prompts[1] if len(prompts) > 1 and prompts[:2] == view.usual(ABOUT) and _are_strings(view, prompts) else None
    )

    def make(stored: Mapping[str, pa.Array]) -> pa.Array:
        values = {name: _stored(stored[column]) for name, column in columns.items()}
        if about is not None:
            values["question"] = _with_input(values["question"], stored[about])
        missing = pa.array([False] * len(values["chosen"]))
        for column in columns.values():
            missing = pc.or_(missing, stored[column].is_null())
        return lists_of_one(records(values, missing))

    uses = (*columns.values(), *([about] if about is not None else []))
    return Found({NAME: FoundColumn(Preferences(), lambda table: joined(table, uses, make))}, uses)


def _are_strings(view: View, names: Sequence[str]) -> bool:
    return all(is_string(view.type(name)) for name in names)


def _with_input(instructions: pa.Array, inputs: pa.Array) -> pa.Array:
    """Return instructions with what they are about in a line below, where it is not empty."""
    inputs = pc.fill_null(inputs, "")
    lines = pc.binary_join_element_wise(instructions, inputs, "\n")
    return pc.if_else(pc.equal(inputs, ""), instructions, lines)


def _is_transcript(text: str) -> bool:
    return HUMAN in text and ASSISTANT in text


def _of_both(stored: Mapping[str, pa.Array]) -> pa.Array:
    """Return the pairs of transcripts that differ in the last answer alone; the others are missing."""
    pairs: list[list[dict[str, str]] | None] = []
    for chosen, rejected in zip(*(column.to_pylist() for column in stored.values()), strict=True):
        (prompt, _, good), (other, _, bad) = ((text or "").rpartition(ASSISTANT) for text in (chosen, rejected))
        turns = [turn.strip() for turn in _TURN.split(prompt) if turn.strip()]
        same = prompt == other and good.strip() and bad.strip() and turns
        pair = {"question": "\n".join(turns), "chosen": good.strip(), "rejected": bad.strip()}
        pairs.append([pair] if same else None)
    return pa.array(pairs, pa.list_(pa.struct(dict.fromkeys(("question", "chosen", "rejected"), pa.string()))))


def _is_said(kind: pa.DataType) -> bool:
    """Return whether a type is a text, a message, or a list of messages."""
    return is_string(kind) or any(fields_of(kind) >= {*fields} for fields in MESSAGES)


def _stored(values: pa.Array) -> pa.Array:
    if is_string(values.type):
        return values
    fields = next(fields for fields in MESSAGES if fields_of(values.type) >= {*fields})

    def renamed(messages: pa.Array) -> pa.Array:
        return pa.StructArray.from_arrays([field(messages, name) for name in fields], list(fields.values()))

    return inner(values, renamed) if is_list(values.type) else of_one(renamed(values))
