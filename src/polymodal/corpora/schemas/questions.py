"""Questions with answers in columns: VQA and DocVQA (`question`, `answer` or `answers`), ChartQA (`query`, `label`),
ScienceQA and A-OKVQA (`choices`, with the number of the right one)."""

from __future__ import annotations

import ast
import string
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_list, is_number, is_string
from polymodal.corpora.schemas._columns import element_type, field, joined, lists_of_one, records, without_places
from polymodal.corpora.schemas._schema import SAMPLE, Found, FoundColumn, View
from polymodal.modalities import Questions

rank = 0
option = "question"
NAME = "questions"
QUESTIONS = ("question", "query")
ANSWERS = ("multiple_choice_answer", "answer", "answers", "label", "correct_choice_idx", "direct_answers")
CHOICES = ("choices", "options")
KINDS = ("question_type", "question_types", "answer_type")
RATIONALES = ("rationale", "solution")
ENGLISH = "en"  # field of a question in several languages, as the Document VQA of the hub has


def find(view: View) -> Found | None:
    """Find a column of questions and one of answers, and what there is about them."""
    if view.named is not None and not _is_question(view, view.named):
        raise view.refuse("question")
    names = [view.named] if view.named else [name for name in view.usual(QUESTIONS) if _is_question(view, name)]
    choices = [name for name in view.usual(CHOICES) if is_choices(view, name)]
    answers = [name for name in view.usual(ANSWERS) if name not in names and _is_answer(view, name)]
    if not names or not answers or NAME in view.table.column_names:
        return None
    if is_list(view.type(answers[0])):
        choices = []  # several answers are texts
    about = {"kind": view.usual(KINDS), "rationale": view.usual(RATIONALES)}
    are_numbers = bool(choices) and _are_numbers(view, answers[0], choices[0])
    used = {"question": names[0], "answers" if is_list(view.type(answers[0])) else "answer": answers[0]}
    if len(answers) > 1 and "answer" in used and is_list(view.type(answers[1])):
        used["answers"] = answers[1]  # VQA v2: those of ten people beside the one of most
    used |= {name: some[0] for name, some in about.items() if some and is_string(element_type(view.type(some[0])))}

    def make(columns: Mapping[str, pa.Array]) -> pa.Array:
        stored = {name: _stored(columns[column], name) for name, column in used.items()}
        if choices:
            stored["question"], stored["answer"] = with_choices(
                stored["question"], stored["answer"], columns[choices[0]], are_numbers
            )
        first = stored["answer"] if "answer" in stored else stored["answers"]
        return lists_of_one(records(stored, pc.or_(stored["question"].is_null(), first.is_null())))

    uses = (*used.values(), *choices[:1])
    return Found({NAME: FoundColumn(Questions(), lambda table: joined(table, uses, make))}, uses)


def _stored(values: pa.Array, name: str) -> pa.Array:
    if name == "question":
        return without_places(field(values, ENGLISH) if pa.types.is_struct(values.type) else values)
    if name in ("kind", "rationale") and is_list(values.type):
        return pc.binary_join(values, " ")
    return values


def with_choices(
    questions: pa.Array, answers: pa.Array, choices: pa.Array, are_numbers: bool
) -> tuple[pa.Array, pa.Array]:
    """Return the questions with lettered choices below them, and the letters of answers that are the text of a choice,
    or its number, from 0. are_numbers: whether texts are numbers of choices.

    A number of no choice has no answer.
    """
    written, letters = [], []
    for question, answer, several in zip(questions.to_pylist(), answers.to_pylist(), choices.to_pylist(), strict=True):
        lettered = list(zip(string.ascii_uppercase, _choices(several), strict=False))
        lines = [question, *(f"{letter}. {choice}" for letter, choice in lettered)]
        written.append(None if question is None else "\n".join(lines))
        if are_numbers and isinstance(answer, str):
            answer = int(answer) if answer.strip().isdecimal() else None
        if isinstance(answer, int | float):  # floating-point where pandas wrote missing ones
            answer = lettered[int(answer)][0] if answer in range(len(lettered)) else None
        elif answer not in [letter for letter, _ in lettered]:
            answer = next((letter for letter, choice in lettered if choice == answer), answer)
        letters.append(answer)
    return pa.array(written, pa.string()), pa.array(letters, pa.string())


def is_choices(view: View, name: str) -> bool:
    """Return whether a column has lists of texts, or texts that are written as lists, as MMMU has them."""
    kind = view.type(name)
    if is_string(kind):
        return all(text.strip().startswith("[") and text.strip().endswith("]") for text in view.sample(name))
    return is_list(kind) and is_string(kind.value_type)


def _choices(value: list[str] | str | None) -> list[str]:
    """Return the choices of a question; none for a text that is no list."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return []
    return [str(choice) for choice in value or ()]


def _are_numbers(view: View, answers: str, choices: str) -> bool:
    """Return whether answers are texts of the numbers of choices, as those of AI2D, and not texts of choices."""
    if not is_string(view.type(answers)):
        return False
    rows = view.table.select([answers, choices]).slice(0, SAMPLE).to_pylist()
    pairs = [(row[answers].strip(), _choices(row[choices])) for row in rows if row[answers] is not None]
    numbered = all(answer.isdecimal() and int(answer) < len(several) for answer, several in pairs)
    return numbered and not all(answer in several for answer, several in pairs)


def _is_question(view: View, name: str) -> bool:
    return is_string(view.type(name)) or (pa.types.is_struct(view.type(name)) and ENGLISH in fields_of(view.type(name)))


def _is_answer(view: View, name: str) -> bool:
    kind = view.type(name)
    if is_list(kind):
        return is_string(kind.value_type) or is_number(kind.value_type) or "answer" in fields_of(kind)
    return is_string(kind) or is_number(kind) or pa.types.is_boolean(kind)
