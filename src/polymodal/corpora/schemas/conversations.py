"""Conversations with any number of images: LLaVA and ShareGPT (`from`, `value`), OpenAI and TRL (`role`, `content`),
the Cauldron and FineVision (`user`, `assistant`), TRL (`prompt` and `completion`); with `image` or `images` and
`system` beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, fitted, is_list, merged_type
from polymodal.corpora.schemas._columns import answers_are_records, field, inner
from polymodal.corpora.schemas._schema import Found, View
from polymodal.corpora.schemas._turns import conversations

rank = 0
option = "conversations"
USUAL = ("conversations", "messages", "conversation", "texts", "dialog", "turns")
PREFERENCES = ("prompt", "chosen", "rejected")  # lists of messages, too
PROMPT, COMPLETION = ("prompt",), "completion"  # of TRL
# Fields of a record, and what they are called in `Conversations`.
TURNS = (
    {"from": "role", "value": "content"},
    {"role": "role", "content": "content"},
    {"user": "user", "assistant": "assistant"},
)


def find(view: View) -> Found | None:
    """Find the first column of conversations, its images and its system prompts."""
    if view.named is not None and _turns(view, view.named) is None:
        raise view.refuse("conversations")
    lists = [name for name in view.free if name.lower() not in PREFERENCES and _turns(view, name)]
    names = [view.named] if view.named else [*(name for name in view.usual(USUAL) if name in lists), *lists]
    if not names or (view.named is None and answers_are_records(view)):
        return None
    turns = names[0]
    before = next((name for name in view.usual(PROMPT) if _turns(view, name)), None)
    if turns.lower() == COMPLETION and before is not None:
        return conversations(view, turns, (before, turns), lambda stored: _joined(stored[before], stored[turns]))
    fields = _turns(view, turns) or {}

    def messages(stored: Mapping[str, pa.Array]) -> tuple[pa.Array, pa.Array]:
        return inner(stored[turns], lambda values: _renamed(values, fields)), stored[turns].is_null()

    return conversations(view, turns, (turns,), messages)


def _joined(prompts: pa.Array, completions: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the messages of prompts with those of their completions, and where one of both is missing."""
    missing = pc.or_(prompts.is_null(), completions.is_null())
    parts = []
    for lists in (prompts, completions):
        fields = _fields(lists.type) or {}
        lists = pc.if_else(missing, None, lists)
        rows = pc.list_parent_indices(lists)
        parts.append((rows, _renamed(pc.list_flatten(lists), fields)))
    kind = merged_type(parts[0][1].type, parts[1][1].type)
    if any(part.type != kind for _, part in parts):  # contents that are texts, and lists of parts
        parts = [(rows, pa.array([fitted(one, kind) for one in part.to_pylist()], kind)) for rows, part in parts]
    rows = np.concatenate([rows.to_numpy(zero_copy_only=False) for rows, _ in parts])
    every = pa.concat_arrays([part for _, part in parts])
    ends = np.cumsum([0, *np.bincount(rows, minlength=len(prompts))])
    in_order = every.take(pa.array(np.argsort(rows, kind="stable")))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), in_order), missing


def _turns(view: View, name: str) -> dict[str, str] | None:
    return _fields(view.type(name))


def _fields(kind: pa.DataType) -> dict[str, str] | None:
    return next((fields for fields in TURNS if fields_of(kind) >= {*fields}), None) if is_list(kind) else None


def _renamed(values: pa.Array, fields: Mapping[str, str]) -> pa.Array:
    return pa.StructArray.from_arrays([field(values, name) for name in fields], list(fields.values()))
