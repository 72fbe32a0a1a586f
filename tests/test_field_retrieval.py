"""Retrieval by field and language: macro-averages, any-match, and texts of other languages through the image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from page_samples import CONCEPTS, released
from polymodal.corpora import from_path
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks import field_retrieval


def test_recall_by_field_is_the_mean_of_languages_and_any_text_of_an_image_is_right() -> None:
    images, texts = torch.eye(4), torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0], [0.1, 0, 1, 0]])
    of_text = [np.array([0]), np.array([1, 2]), np.array([0]), np.array([0])]
    test = field_retrieval.FieldTest(images, texts, ["en", "en", "en", "de"], of_text, ["a", "b", "c", "d"])

    def recall(parts: Any, k: int = 1) -> float:
        (score,) = field_retrieval._macro("name", parts, 4, (k,))
        return float(score.value)

    to_image = [field_retrieval._text_to_image(test, language) for language in ("de", "en")]
    assert recall(to_image) == pytest.approx((0 + 2 / 3) / 2)
    assert recall(to_image, 2) == pytest.approx((1 + 2 / 3) / 2)
    assert recall([field_retrieval._image_to_text(test, "en")]) == pytest.approx(2 / 3)  # images 0, 1 and 2
    (across,) = field_retrieval._across_languages(test, "de")  # the texts of image 0 are right, best of rank 1
    assert (across.best.tolist(), across.counts.tolist(), across.candidates) == ([1], [2], 3)


def test_equal_words_and_texts_of_no_known_language_are_not_compared_between_languages() -> None:
    of_text = [np.array([0]), np.array([0]), np.array([0]), np.array([1]), np.array([1])]
    languages, texts = ["en", "de", "und", "en", "de"], ["Half Dome", "Half dome", "a; b", "a dome", "eine Kuppel"]
    test = field_retrieval.FieldTest(torch.zeros(2, 5), torch.eye(5), languages, of_text, texts)
    (across,) = field_retrieval._across_languages(test, "en")
    assert (across.unit.tolist(), across.candidates) == ([1], 2)
    assert [*field_retrieval._across_languages(test, "und")] == []


def test_an_attribution_counts_in_the_language_of_its_page_only_where_language_identification_confirmed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = TaskInputs.__new__(TaskInputs)
    corpus = from_path(released(tmp_path, {"wit.tsv.gz": range(6 * CONCEPTS)}))
    vars(inputs).update(method=None, processor=None, reader=SimpleNamespace(corpus=corpus))
    items = SimpleNamespace(rows=np.arange(len(corpus)), vectors=torch.zeros(len(corpus), 4))
    monkeypatch.setattr(TaskInputs, "item_vectors", lambda inputs, split: items)
    monkeypatch.setattr(field_retrieval, "embed", lambda method, processor, text: {"text": torch.zeros(len(text), 4)})
    tests = field_retrieval.field_tests(inputs, "test")
    assert Counter(tests["attribution"].languages) == {"en": CONCEPTS, "de": CONCEPTS, "und": CONCEPTS}
    assert {*tests["reference"].languages} == {"en", "de", "fr"}
