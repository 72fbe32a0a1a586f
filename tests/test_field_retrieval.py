"""Retrieval by field and language: macro-averages, any-match, and texts of other languages through the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polymodal.evaluation.tasks import field_retrieval


def test_recall_by_field_is_the_mean_of_languages_and_any_text_of_an_image_is_right() -> None:
    images, texts = torch.eye(4), torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0], [0.1, 0, 1, 0]])
    of_text = [np.array([0]), np.array([1, 2]), np.array([0]), np.array([0])]
    test = field_retrieval.FieldTest(images, texts, ["en", "en", "en", "de"], of_text)

    def recall(parts: Any, k: int = 1) -> float:
        (score,) = field_retrieval._macro("name", parts, 4, (k,))
        return float(score.value)

    to_image = [field_retrieval._text_to_image(test, language) for language in ("de", "en")]
    assert recall(to_image) == pytest.approx((0 + 2 / 3) / 2)
    assert recall(to_image, 2) == pytest.approx((1 + 2 / 3) / 2)
    assert recall([field_retrieval._image_to_text(test, "en")]) == pytest.approx(2 / 3)  # images 0, 1 and 2
    (across,) = field_retrieval._across_languages(test, "de")  # the texts of image 0 are right, best of rank 1
    assert (across.best.tolist(), across.counts.tolist(), across.candidates) == ([1], [2], 3)
