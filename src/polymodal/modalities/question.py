"""Visual question answering (VQA): questions about an example, with answers."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text

STORED = ("question", "answer", "kind", "rationale")  # of built-in corpora
LETTERS = string.ascii_uppercase


class Question(NamedTuple):
    """Question with its answer.

    kind: question type, such as `count`, for metrics by type. rationale: chain-of-thought (steps to the answer), if
    known. answers: those of several people, if known, of which `answer` is the most frequent.
    """

    question: str
    answer: str
    kind: str
    rationale: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """Column of lists of questions with their answers."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct(dict.fromkeys(STORED, pa.string())))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Question]:
        """Decode questions. A record may have a list `answers`, and `choices`, of which `answer` is the number, from 0,
        or the letter: these are written below the question, and the answer is a letter.

        Raises UnreadableExample for a question without an answer.
        """
        return [_question(record) for record in value]

    def describe(self, value: list[Question]) -> str:
        return f"{len(value)} questions: {' '.join(f'{q.question} {q.answer}.' for q in value[:2])}"

    def plot(self, value: list[Question], axes: Any) -> None:
        write_text(axes, "\n".join(f"{q.question} {q.answer}" for q in value), size=7, width=42, lines=10)


def _question(record: Mapping[str, Any]) -> Question:
    answers = tuple(answer for answer in record.get("answers") or () if answer is not None)
    answer, choices, question = record.get("answer"), record.get("choices") or (), record["question"]
    if answer is None and answers:
        answer = Counter(answers).most_common(1)[0][0]
    question = "\n".join([question, *(f"{letter}. {one}" for letter, one in zip(LETTERS, choices, strict=False))])
    if isinstance(answer, int):
        answer = LETTERS[answer] if 0 <= answer < min(len(choices), len(LETTERS)) else None
    if answer is None:
        raise UnreadableExample(f"the question '{record['question']}' has no answer")
    kind, rationale = (_joined(record.get(name)) for name in ("kind", "rationale"))
    return Question(question, answer, kind, rationale, answers)


def _joined(value: str | list[str] | None) -> str:
    return " ".join(value) if isinstance(value, list) else value or ""


def stored_questions(asked: Iterable[tuple[str, ...]]) -> list[dict[str, str]]:
    """Convert (question, answer, kind[, rationale]) tuples to the storage of built-in corpora."""
    return [Question(*record)._asdict() for record in asked]
