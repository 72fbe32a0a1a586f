"""Visual question answering (VQA): questions about an example, with answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.modalities.modality import write_text


class Question(NamedTuple):
    """Question with its answer.

    kind: question type, such as `count`, for metrics by type. rationale: chain-of-thought (steps to the answer), if
    known. answers: all reference answers where there are several, such as the ten of VQA v2.
    """

    question: str
    answer: str
    kind: str
    rationale: str = ""
    answers: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All reference answers, or the only one."""
        return self.answers or (self.answer,)


_STORED = ("question", "answer", "kind", "rationale")  # of built-in corpora; users' files may also have `answers`


@dataclass(frozen=True)
class Questions:
    """Column of lists of questions with their answers."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct(dict.fromkeys(_STORED, pa.string())))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Question]:
        return [
            Question(
                record["question"],
                record["answer"],
                record.get("kind") or "",
                record.get("rationale") or "",
                tuple(record.get("answers") or ()),
            )
            for record in value
        ]

    def describe(self, value: list[Question]) -> str:
        return f"{len(value)} questions: {' '.join(f'{q.question} {q.answer}.' for q in value[:2])}"

    def plot(self, value: list[Question], axes: Any) -> None:
        write_text(axes, "\n".join(f"{q.question} {q.answer}" for q in value), size=7, width=42, lines=10)


def stored_questions(asked: Iterable[tuple[str, ...]]) -> list[dict[str, str]]:
    """Convert (question, answer, kind[, rationale]) tuples to the storage of built-in corpora."""
    return [dict(zip(_STORED, (*record, ""), strict=False)) for record in asked]
