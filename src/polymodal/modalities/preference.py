"""Preference pairs: two answers to a question about an example, of which one is preferred."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.conversation import USER, Message, messages_of
from polymodal.modalities.modality import write_text


class Preference(NamedTuple):
    """Preference pair. kind: how it was made, such as `correctness`."""

    question: str
    chosen: str
    rejected: str
    kind: str


@dataclass(frozen=True)
class Preferences:
    """Column of lists of preference pairs."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct(dict.fromkeys(Preference._fields, pa.string())))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Preference]:
        """Decode pairs of texts, or of lists of messages: their common beginning is the question where there is none.

        Placeholders of the image are left out. Raises UnreadableExample for a pair of equal or empty answers, and for
        one about several images.
        """
        return [_preference(record) for record in value]

    def describe(self, value: list[Preference]) -> str:
        text = "; ".join(f"{pair.question} {pair.chosen} rather than {pair.rejected}" for pair in value[:1])
        return f"{len(value)} preferences: {text}"

    def plot(self, value: list[Preference], axes: Any) -> None:
        lines = (f"{pair.question}\n+ {pair.chosen}\n- {pair.rejected}" for pair in value)
        write_text(axes, "\n".join(lines), size=7, width=42, lines=10)


def _preference(record: Mapping[str, Any]) -> Preference:
    question, chosen, rejected = (_messages(record.get(name)) for name in ("question", "chosen", "rejected"))
    same = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    pair = Preference(
        _written(question or chosen[: len(same)]),
        _written(chosen[len(same) :]),
        _written(rejected[len(same) :]),
        record.get("kind") or "",
    )
    if not pair.chosen or not pair.rejected:
        raise UnreadableExample("the chosen and the rejected answer are equal, or one is empty")
    images = sum(not isinstance(part, str) for message in question or chosen for part in message.parts)
    if images > 1:
        raise UnreadableExample(f"the pair is about {images} images; those about one are read")
    return pair


def _messages(value: str | list[Mapping[str, Any]] | None) -> list[Message]:
    """Return messages, whose images are only marked. A text is one."""
    stored = [{"role": USER, "content": value}] if isinstance(value, str) else value or []
    return [message for record in stored for message in messages_of(record)]


def _written(messages: Sequence[Message]) -> str:
    return "\n".join(message.text for message in messages if message.text)
