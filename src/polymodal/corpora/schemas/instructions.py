"""One question and answer a row, for language models: ms-swift (`query`, `response`, `history`), Alpaca (`instruction`,
`input`, `output`), Dolly (`context`), TRL (`prompt`, `completion`); with `image` or `images` and `system` beside
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from polymodal.corpora._types import is_list, is_string
from polymodal.corpora.schemas._schema import Found, View
from polymodal.corpora.schemas._turns import conversations
from polymodal.modalities import Conversations

rank = 0
option = ""
NAME = "conversations"
FORMS = (
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
INPUTS, HISTORY = ("input", "context"), "history"  # what the instruction is about; earlier pairs of query and response


def find(view: View) -> Found | None:
    """Find a column of questions and one of answers, the earlier turns, and the images."""
    taken = any(isinstance(kind, Conversations) for kind in view.modalities.values())
    if taken or NAME in view.table.column_names or len(view.usual(("chosen", "rejected"))) == 2:
        return None
    pairs = ([view.usual((name,)) for name in form] for form in FORMS)
    pair = next((one for one in pairs if all(one) and all(is_string(view.type(names[0])) for names in one)), None)
    if pair is None:
        return None
    question, answer = (names[0] for names in pair)
    about = next((name for name in view.usual(INPUTS) if is_string(view.type(name))), None)
    history = next((name for name in view.usual((HISTORY,)) if _is_history(view.type(name))), None)
    columns = tuple(name for name in (question, answer, about, history) if name is not None)

    def messages(stored: Mapping[str, pa.Array]) -> tuple[pa.Array, pa.Array]:
        empty = [None] * len(stored[question])
        parts = [empty if name is None else stored[name].to_pylist() for name in (question, answer, about, history)]
        lists = [_messages(*row) for row in zip(*parts, strict=True)]
        made = pa.array(lists, Conversations().arrow_type.field("messages").type)
        return made, made.is_null()

    return conversations(view, NAME, columns, messages)


def _is_history(kind: pa.DataType) -> bool:
    return is_list(kind) and (pa.types.is_null(kind.value_type) or is_list(kind.value_type))


def _messages(question: str | None, answer: str | None, about: str | None, history: Any) -> list[dict[str, str]] | None:
    """Return the turns of a row; None without a question or an answer."""
    if not question or not answer:
        return None
    turns = [turn for turn in history or () if turn is not None and len(turn) == 2]
    pairs = [*turns, (f"{question}\n{about}" if about else question, answer)]
    roles = ("user", "assistant")
    return [{"role": role, "content": str(text)} for turn in pairs for role, text in zip(roles, turn, strict=True)]
