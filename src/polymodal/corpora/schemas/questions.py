"""Questions with answers in columns: VQA and DocVQA (`question`, `answer` or `answers`), ChartQA (`query`, `label`),
ScienceQA and A-OKVQA (`choices`, with the number of the right one)."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_list, is_number, is_string
from polymodal.corpora.schemas._columns import element_type, field, inner, joined, lists_of_one, records, without_places
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
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
    choices = [
        name for name in view.usual(CHOICES) if is_list(view.type(name)) and is_string(view.type(name).value_type)
    ]
    answers = [name for name in view.usual(ANSWERS) if name not in names and _is_answer(view, name)]
    if not names or not answers or NAME in view.table.column_names:
        return None
    about = {"kind": view.usual(KINDS), "rationale": view.usual(RATIONALES)}
    used = {"question": names[0], "answers" if is_list(view.type(answers[0])) else "answer": answers[0]}
    if len(answers) > 1 and "answer" in used and is_list(view.type(answers[1])):
        used["answers"] = answers[1]  # VQA v2: those of ten people beside the one of most
    used |= {name: some[0] for name, some in about.items() if some and is_string(element_type(view.type(some[0])))}
    if choices:
        used["choices"] = choices[0]
    uses = tuple(used.values())

    def make(columns: Mapping[str, pa.Array]) -> pa.Array:
        stored = {name: _stored(columns[column], name, "choices" in used) for name, column in used.items()}
        first = stored["answer"] if "answer" in used else stored["answers"]
        return lists_of_one(records(stored, pc.or_(stored["question"].is_null(), first.is_null())))

    return Found({NAME: FoundColumn(Questions(), lambda table: joined(table, uses, make))}, uses)


def _stored(values: pa.Array, name: str, has_choices: bool) -> pa.Array:
    if name == "question":
        return without_places(field(values, ENGLISH) if pa.types.is_struct(values.type) else values)
    if name == "answers" and pa.types.is_struct(values.type.value_type):
        return pa.ListArray.from_arrays(values.offsets, field(values.values, "answer"))
    if name == "answers" and not is_string(values.type.value_type):
        return inner(values, lambda several: pc.cast(several, pa.string()))
    if name == "answer" and not is_string(values.type):
        return pc.cast(values, pa.int64() if has_choices and pa.types.is_integer(values.type) else pa.string())
    return values


def _is_question(view: View, name: str) -> bool:
    return is_string(view.type(name)) or (pa.types.is_struct(view.type(name)) and ENGLISH in fields_of(view.type(name)))


def _is_answer(view: View, name: str) -> bool:
    kind = view.type(name)
    if is_list(kind):
        return is_string(kind.value_type) or is_number(kind.value_type) or "answer" in fields_of(kind)
    return is_string(kind) or is_number(kind) or pa.types.is_boolean(kind)
