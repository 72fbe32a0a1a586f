"""Visual question answering (VQA): questions about an example, with answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polymodal.errors import UnreadableExample
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


STORED = ("question", "answer", "kind", "rationale")  # of built-in corpora; users' files may also have `answers`


@dataclass(frozen=True)
class Questions:
    """Column of lists of questions with their answers.

    Numbers and booleans become their text in JSON (2, 2.5, true). Questions without an answer (null, or an empty list)
    are left out. A list of answers, or of `{"answer"}` records as in VQA v2, has several accepted answers.
    """

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct(dict.fromkeys(STORED, pa.string())))

    def decode(self, value: Sequence[Mapping[str, Any]]) -> list[Question]:
        """Decode the questions that have answers. Raises UnreadableExample when none of them has one."""
        questions = []
        for record in value:
            accepted = _accepted(record.get("answers") or record.get("answer"))
            if accepted and record["question"] is not None:
                answer = Counter(accepted).most_common(1)[0][0]  # the first of equally frequent ones
                kind, rationale = (_text(record.get(name) or "") for name in STORED[2:])
                several = tuple(accepted) if len(accepted) > 1 else ()
                questions.append(Question(_text(record["question"]), answer, kind, rationale, several))
        if len(value) and not questions:
            raise UnreadableExample("no question has an answer")
        return questions

    def describe(self, value: list[Question]) -> str:
        return f"{len(value)} questions: {' '.join(f'{q.question} {q.answer}.' for q in value[:2])}"

    def plot(self, value: list[Question], axes: Any) -> None:
        write_text(axes, "\n".join(f"{q.question} {q.answer}" for q in value), size=7, width=42, lines=10)


def stored_questions(asked: Iterable[tuple[str, ...]]) -> list[dict[str, str]]:
    """Convert (question, answer, kind[, rationale]) tuples to the storage of built-in corpora."""
    return [dict(zip(STORED, (*record, ""), strict=False)) for record in asked]  # without a rationale, an empty one


def _accepted(answer: Any) -> list[str]:
    """Return the texts of an answer, or of each answer of a list."""
    answers = answer if isinstance(answer, list | tuple | np.ndarray) else [answer]
    plain = [one.get("answer") if isinstance(one, Mapping) else one for one in answers]
    return [_text(one) for one in plain if one is not None and one == one]  # NaN is missing, too


def _text(value: Any) -> str:
    """Return a string as it is, and another value as JSON writes it; a whole number has no fraction.

    Raises UnreadableExample for a list or a record in the place of a text.
    """
    if isinstance(value, str):
        return value
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        written = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UnreadableExample(f"a question or answer is {value!r}, which is no text, number or boolean") from error
    if isinstance(value, list | dict):
        raise UnreadableExample(f"a question or answer is {written[:60]}, which is no text, number or boolean")
    return written
