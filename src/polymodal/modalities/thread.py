"""Threads of question-and-answer sites: text and code of a question and of its answer, and labelled links to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text

LABELS = ("duplicate", "similar_text", "similar_tags", "different")  # numbered as in SODD
DUPLICATE = 0
PARTS = ("question_text", "question_code", "answer_text", "answer_code")  # QT, QC, AT and AC of the paper


class Link(NamedTuple):
    """Labelled pair of questions. key: of the other thread. label: index into `LABELS`."""

    key: str
    label: int


class Thread(NamedTuple):
    """A question with its answer; a part that is missing is empty. links: pairs whose first post is this question."""

    question_text: str = ""
    question_code: str = ""
    answer_text: str = ""
    answer_code: str = ""
    links: tuple[Link, ...] = ()

    @property
    def post(self) -> tuple[str, str]:
        """Text and code of the question, which is what duplicates are found among."""
        return self.question_text, self.question_code

    @property
    def has_question(self) -> bool:
        return bool(self.question_text or self.question_code)


@dataclass(frozen=True)
class Threads:
    """Column of threads."""

    @property
    def arrow_type(self) -> pa.DataType:
        link = pa.struct({"key": pa.string(), "label": pa.int8()})
        return pa.struct({**dict.fromkeys(PARTS, pa.string()), "links": pa.list_(link)})

    def decode(self, value: Mapping[str, Any]) -> Thread:
        """Decode a thread. Raises UnreadableExample where there is no question, and for an unknown label."""
        parts = {name: (value.get(name) or "").strip("\n") for name in PARTS}
        parts = {name: text if text.strip() else "" for name, text in parts.items()}
        links = tuple(Link(str(link["key"]), int(link["label"])) for link in value.get("links") or ())
        for link in links:
            if not 0 <= link.label < len(LABELS):
                raise UnreadableExample(f"the pair with {link.key} has the label {link.label}, not 0 to 3")
        thread = Thread(**parts, links=links)
        if not thread.has_question:
            raise UnreadableExample("the question has neither text nor code")
        return thread

    def describe(self, value: Thread) -> str:
        code = f" | {' '.join(value.question_code.split())}" if value.question_code else ""
        return f"{' '.join(value.question_text.split())}{code}"[:200]

    def plot(self, value: Thread, axes: Any) -> None:
        """Plot text and code of the question."""
        write_text(axes, f"{value.question_text}\n\n{value.question_code}", size=6, width=46, lines=16)


def stored_thread(parts: Sequence[str | None], links: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """Return a thread in the storage of built-in corpora. parts: in the order of `PARTS`."""
    return {**dict(zip(PARTS, parts, strict=True)), "links": [Link(*link)._asdict() for link in links]}
