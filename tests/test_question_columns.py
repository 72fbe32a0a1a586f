"""Questions and answers in columns, as the field's data sets have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from format_samples import png
from polymodal.corpora import Corpus, from_path
from polymodal.data.processor import fit_processor
from polymodal.modalities import Image, Questions
from polymodal.modalities.question import Question
from polymodal.recipes.language_models import mono_internvl
from polymodal.rng import ExampleRNG

COUNT = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(folder: Path, make: Any, schema: pa.Schema | None = None) -> Corpus:
    rows = [{"image": {"bytes": png(n), "path": f"{n}.png"}} | make(n) for n in range(COUNT)]
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data.parquet")
    return from_path(folder / "data.parquet")


def question(corpus: Corpus, row: int = 3) -> Question:
    (one,) = corpus.value(row, corpus.column_with(Questions))
    return one


FORMS: dict[str, tuple[Any, Question]] = {
    "one answer": (lambda n: {"question": f"{n}?", "answer": f"a{n}"}, Question("3?", "a3", "")),
    "VQA v2 of the hub": (
        lambda n: {
            "question": f"{n}?",
            "question_type": "what",
            "multiple_choice_answer": "yes",
            "answers": [
                {"answer": "yes" if m else "no", "answer_confidence": "yes", "answer_id": m} for m in range(10)
            ],
        },
        Question("3?", "yes", "what", "", ("no", *["yes"] * 9)),
    ),
    "ten answers": (
        lambda n: {"question": f"{n}?", "answers": ["no", *["yes"] * 9]},
        Question("3?", "yes", "", "", ("no", *["yes"] * 9)),
    ),
    "DocVQA": (
        lambda n: {
            "questionId": str(n),
            "question": f"{n}?",
            "question_types": ["form"],
            "answers": [f"{n}", f"{n}.0"],
        },
        Question("3?", "3", "form", "", ("3", "3.0")),
    ),
    "ChartQA": (lambda n: {"query": f"{n}?", "label": [f"a{n}"]}, Question("3?", "a3", "")),
    "languages": (
        lambda n: {"query": {"de": "x", "en": f"{n}?"}, "answers": ["a"]},
        Question("3?", "a", ""),
    ),
    "numbers": (lambda n: {"question": f"{n}?", "answer": n}, Question("3?", "3", "")),
    "ScienceQA": (
        lambda n: {"question": "Which?", "choices": ["x", "y"], "answer": n % 2, "solution": "because"},
        Question("Which?\nA. x\nB. y", "B", "", "because"),
    ),
    "letters": (
        lambda n: {"question": "<image>\nWhich?", "options": ["x", "y"], "answer": "AB"[n % 2]},
        Question("Which?\nA. x\nB. y", "B", ""),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_right(form, tmp_path):
    make, expected = FORMS[form]
    corpus = opened(tmp_path, make)
    assert question(corpus) == expected
    assert {type(kind) for kind in corpus.columns.values()} == {Image, Questions}


def test_a_question_without_answer_is_missing_or_said(tmp_path):
    corpus = opened(tmp_path, lambda n: {"question": f"{n}?", "answer": None if n == 3 else "a"})
    assert corpus.raw(3, "questions") is None
    assert "questions" not in corpus[3]
    assert question(corpus, 4).answer == "a"
    other = tmp_path / "other"
    other.mkdir()
    corpus = opened(other, lambda n: {"question": f"{n}?", "choices": ["x", "y"], "answer": n})
    assert question(corpus, 1).answer == "B"
    assert corpus.raw(3, "questions") is None
    assert [(one.count, one.example) for one in corpus.skipped] == [(COUNT - 2, "row 2")]


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        ("['$6', \"it's\", 'x']", "B", "B"),  # MMMU
        (["p", "q", "r"], "1", "B"),  # AI2D
        (["p", "q", "r"], "q", "B"),
        (["1", "2", "3"], "2", "B"),  # the text of a choice
        (["p", "q", "r"], 1, "B"),
    ],
)
def test_answers_are_letters_of_choices(options, answer, letter, tmp_path):
    corpus = opened(tmp_path, lambda n: {"question": "what?", "options": options, "answer": answer})
    asked = question(corpus)
    assert asked.answer == letter
    choices = ["$6", "it's", "x"] if isinstance(options, str) else options
    lines = [f"{mark}. {choice}" for mark, choice in zip("ABC", choices, strict=True)]
    assert asked.question.split("\n") == ["what?", *lines]


@pytest.mark.parametrize("options", ["[]", "[what", "[1 2]"])
def test_options_that_are_no_list_are_no_choices(options, tmp_path):
    corpus = opened(tmp_path, lambda n: {"question": "what?", "options": options, "answer": "yes"})
    assert question(corpus)[:2] == ("what?", "yes")


def test_texts_and_offsets_are_not_copied(tmp_path):
    corpus = opened(tmp_path, lambda n: {"question": f"{n}?", "answers": ["a", "b"]})
    mapped = pa.total_allocated_bytes()
    again = from_path(tmp_path / "data.parquet")
    assert question(again) == question(corpus)
    assert pa.total_allocated_bytes() - mapped < 4096


def test_chartqa_as_it_is_released(tmp_path):
    """A JSON list with `imgname`, beside the folder `png`."""
    (tmp_path / "png").mkdir()
    for number in range(COUNT):
        (tmp_path / "png" / f"{number}.png").write_bytes(png(number))
    rows = [{"imgname": f"{n}.png", "query": f"{n}?", "label": str(n)} for n in range(COUNT)]
    (tmp_path / "train_human.json").write_text(json.dumps(rows))
    corpus = from_path(tmp_path / "train_human.json")
    assert question(corpus) == Question("3?", "3", "")
    assert corpus.value(3, corpus.column_with(Image)).size == (8, 6)


def test_lists_of_one_image_are_images_and_lists_of_several_are_none(tmp_path):
    for count in (1, 2):
        rows = [{"images": [png(n)] * (count if n else 0), "question": f"{n}?", "answer": "a"} for n in range(COUNT)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{count}.parquet")
    corpus = from_path(tmp_path / "1.parquet")
    assert np.asarray(corpus.value(3, "images"))[0, 0, 0] == 60
    assert corpus.raw(0, "images") is None
    assert not from_path(tmp_path / "2.parquet").has_modality(Image)


def test_mono_internvl_learns_from_questions_without_captions(tmp_path):
    corpus = opened(tmp_path, FORMS["ten answers"][0])
    recipe = mono_internvl.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    examples = [processor.load_example(corpus, row) for row in range(4)]
    model = recipe.build(processor)
    for stage in recipe.stages():
        batch = getattr(recipe, stage.batch)(examples, processor, ExampleRNG.of(0, 0, 4))
        assert torch.isfinite(model.losses(batch)["lm"])
