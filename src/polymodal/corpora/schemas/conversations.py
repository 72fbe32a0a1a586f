"""Conversations with any number of images: LLaVA and ShareGPT (`from`, `value`), OpenAI and TRL (`role`, `content`),
the Cauldron and FineVision (`user`, `assistant`); with `image` or `images` and `system` beside them."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from polymodal.corpora._types import fields_of, is_list, is_string
from polymodal.corpora.schemas._columns import field, inner, joined, of_one, records
from polymodal.corpora.schemas._image_lists import image_lists, media_root, note_of
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Conversations

rank = 0
option = "conversations"
USUAL = ("conversations", "messages", "conversation", "texts", "dialog", "turns")
PREFERENCES = ("prompt", "chosen", "rejected")  # lists of messages, too
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
    lists = [name for name in view.free if name not in PREFERENCES and _turns(view, name)]
    names = [view.named] if view.named else [*(name for name in view.usual(USUAL) if name in lists), *lists]
    if not names:
        return None
    turns, images = names[0], image_lists(view)
    system = next((name for name in view.usual(("system", "system_prompt")) if is_string(view.type(name))), None)
    fields = _turns(view, turns) or {}
    uses = tuple(name for name in (turns, images, system) if name is not None)

    def make(columns: Mapping[str, pa.Array]) -> pa.Array:
        made = {"messages": inner(columns[turns], lambda values: _renamed(values, fields))}
        if images is not None:
            made["images"] = columns[images] if is_list(columns[images].type) else of_one(columns[images])
        if system is not None:
            made["system"] = columns[system]
        return records(made, columns[turns].is_null())

    root = view.root if images is None else media_root(view, images)
    notes = note_of(view, images, root) if images is not None else ()
    return Found({turns: FoundColumn(Conversations(root), lambda table: joined(table, uses, make))}, uses, notes=notes)


def _turns(view: View, name: str) -> dict[str, str] | None:
    kind = view.type(name)
    if not is_list(kind):
        return None
    return next((fields for fields in TURNS if fields_of(kind) >= {*fields}), None)


def _renamed(values: pa.Array, fields: Mapping[str, str]) -> pa.Array:
    return pa.StructArray.from_arrays([field(values, name) for name in fields], list(fields.values()))
