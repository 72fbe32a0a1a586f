"""Questions whose answers are numbers, booleans, missing, or several."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import polymodal as pm
from polymodal.errors import UnreadableExample
from polymodal.evaluation.question_answering import question_accuracy
from polymodal.modalities import Questions
from polymodal.modalities.question import Question, stored_questions


def written(folder: Path, answers: list[Any]) -> Any:
    """A corpus of JSON lines, one question an image."""
    rows = []
    for place, answer in enumerate(answers):
        PILImage.new("RGB", (8, 8), (place, 0, 0)).save(folder / f"{place}.png")
        rows.append({"image": f"{place}.png", "questions": [{"question": "how?", "answer": answer}], "caption": "c"})
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return pm.corpora.from_path(folder / "asked.jsonl")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (
            [1, "none", True, None, 2.5, ["a", "b", "b"], [1, 2], "x"],
            ["1", "none", "true", None, "2.5", "b", "1", "x"],
        ),
        ([3, 4], ["3", "4"]),
        ([3, 2.5], ["3", "2.5"]),
        ([True, False], ["true", "false"]),
        (["x", None], ["x", None]),
        ([["yes", "no", "no"], []], ["no", None]),
        ([1, "none"], ["1", "none"]),
        ([[{"answer": "red"}, {"answer": "blue"}, {"answer": "blue"}]], ["blue"]),
    ],
)
def test_answers_of_json_lines(answers: list[Any], expected: list[str | None], tmp_path: Path) -> None:
    corpus = written(tmp_path, answers)
    for row, answer in enumerate(expected):
        if answer is None:
            with pytest.raises(UnreadableExample, match="no question has an answer"):
                corpus.value(row, "questions")
        else:
            assert [question.answer for question in corpus.value(row, "questions")] == [answer]
    in_bulk = corpus.raw_values(np.arange(len(corpus)), "questions")
    assert in_bulk == [corpus.raw(row, "questions") for row in range(len(corpus))]


def test_one_missing_answer_of_several_questions_is_left_out() -> None:
    asked = [{"question": "a?", "answer": None}, {"question": "b?", "answer": 0}, {"question": None, "answer": "x"}]
    assert [question.answer for question in Questions().decode(asked)] == ["0"]
    assert Questions().decode([{"question": 7, "answer": math.nan}, {"question": 7, "answer": np.int64(3)}]) == [
        Question("7", "3", "")
    ]
    assert Questions().decode([]) == []
    with pytest.raises(UnreadableExample, match="no text, number or boolean"):
        Questions().decode([{"question": "a?", "answer": {"value": [1]}}, {"question": "b?", "answer": [["x"]]}])


def test_every_accepted_answer_is_right() -> None:
    (question,) = Questions().decode([{"question": "where?", "answer": ["sofa", "couch", "couch"], "kind": "place"}])
    assert question.answer == "couch"
    assert question.answers == ("sofa", "couch", "couch")
    assert [question_accuracy(text, question) for text in ("Sofa.", "couch", "bed")] == [1, 1, 0]
    (alone,) = Questions().decode([{"question": "where?", "answer": "sofa"}])
    assert alone.answers == ()
    assert question_accuracy("sofa", alone) == 1


def test_storage_of_built_in_corpora_is_unchanged() -> None:
    (stored,) = stored_questions([("q?", "a", "kind", "so a")])
    assert stored == {"question": "q?", "answer": "a", "kind": "kind", "rationale": "so a"}
    assert set(stored) == {Questions().arrow_type.value_type[place].name for place in range(4)}
