"""Conversations with any number of images: LLaVA and ShareGPT (`from`, `value`), OpenAI and TRL (`role`, `content`),
the Cauldron and FineVision (`user`, `assistant`); with `image` or `images` and `system` beside them."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from polymodal.corpora._types import fields_of, is_list
from polymodal.corpora.schemas._columns import field, inner
from polymodal.corpora.schemas._schema import Found, View
from polymodal.corpora.schemas._turns import conversations

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
    turns, fields = names[0], _turns(view, names[0]) or {}

    def messages(stored: Mapping[str, pa.Array]) -> tuple[pa.Array, pa.Array]:
        return inner(stored[turns], lambda values: _renamed(values, fields)), stored[turns].is_null()

    return conversations(view, turns, (turns,), messages)


def _turns(view: View, name: str) -> dict[str, str] | None:
    kind = view.type(name)
    if not is_list(kind):
        return None
    return next((fields for fields in TURNS if fields_of(kind) >= {*fields}), None)


def _renamed(values: pa.Array, fields: Mapping[str, str]) -> pa.Array:
    return pa.StructArray.from_arrays([field(values, name) for name in fields], list(fields.values()))
