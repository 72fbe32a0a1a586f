"""`wit`: sampling of fields, rows of one image, texts in two languages, rows that are trained on."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from page_samples import CONCEPTS, released
from polymodal.corpora import from_path
from polymodal.data.columns.fields import FieldsColumn, FieldTexts
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.modalities.text import Caption
from polymodal.recipes.dual_encoders.wit import WIT, Recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = released(tmp_path_factory.mktemp("wit"), {"wit_v1.all-00000.tsv.gz": range(6 * CONCEPTS)})
    return from_path(folder)


def test_fields_are_sampled_by_weights_that_are_renormalized_over_those_of_a_row() -> None:
    processor = Processor({}, {"text": TextColumn(LearnedTokenizer(300, 8))})
    texts = {name: [Caption(name)] for name in ("reference", "alt", "section")}
    row, rng = FieldTexts("a.png", texts), np.random.default_rng(0)
    assert row.probabilities(Recipe().field_weights) == pytest.approx({"reference": 5 / 7, "alt": 2 / 7})
    drawn = [Recipe().sample_field(row, processor, rng) for _ in range(2000)]
    assert {*drawn} == {"reference", "alt"}
    assert drawn.count("alt") / 2000 == pytest.approx(2 / 7, abs=0.05)
    assert (
        Recipe(combine="concatenate", context_words=1).sample_field(row, processor, rng) == "reference | alt | section"
    )
    attributed = FieldTexts("a.png", {"attribution": [Caption("x")], "alt": [Caption("y")]})
    assert attributed.probabilities(Recipe().field_weights, True) == {"alt": 1.0}
    with pytest.raises(UserError, match="no field"):
        row.probabilities({"attribution": 1.0})


def test_rows_of_one_image_are_no_negatives_and_texts_of_two_languages_are_compared_where_there_are_any() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text, other = (F.normalize(torch.randn(4, 5, generator=generator), dim=-1) for _ in range(3))
    ids, has = torch.tensor([7.0, 3.0, 7.0, 5.0], dtype=torch.float64), torch.tensor([1.0, 0.0, 1.0, 1.0])
    method = SimpleNamespace(logit_scale=lambda: torch.tensor(4.0), text_text_weight=0.5)
    encoded = {"image": image, "text": text, "image_id": ids, "other_text": other, "has_other": has}
    losses = WIT.contrastive_losses(method, encoded)  # type: ignore[arg-type]

    def expected(a: torch.Tensor, b: torch.Tensor, rows: list[int]) -> float:
        total = 0.0
        for i in rows:
            logits = [4 * float(a[i] @ b[j]) for j in range(4)]
            right = [j for j in range(4) if ids[j] == ids[i]]
            total += sum(math.log(sum(map(math.exp, logits))) - logits[j] for j in right) / len(right)
        return total / len(rows)

    every, two = [0, 1, 2, 3], [0, 2, 3]
    assert float(losses["contrastive"]) == pytest.approx(
        (expected(image, text, every) + expected(text, image, every)) / 2
    )
    assert float(losses["text_text"]) == pytest.approx((expected(text, other, two) + expected(other, text, two)) / 4)


def test_translations_are_texts_of_the_same_image_in_other_languages_of_training(corpus) -> None:
    column, row = FieldsColumn(translations=True), int(corpus.rows("train")[0])
    loaded, record = column.load(corpus, row), corpus.table.slice(row, 1).to_pylist()[0]
    assert {caption.language for caption in loaded.translations} == {"en", "de", "fr"} - {record["language"]}
    assert column.load(corpus, int(corpus.rows("test")[0])).translations == []
    assert FieldsColumn().load(corpus, row) == FieldTexts(loaded.image, loaded.fields, loaded.passes_lang_id)


def test_training_rows_are_those_with_a_field_in_a_language(corpus) -> None:
    alone = Recipe(reference_weight=0, attribution_weight=0, train_languages=("de",), max_rows=3)
    records = corpus.table.take(alone.training_rows(corpus)).to_pylist()
    assert len(records) == 3
    assert all(one["language"] == "de" and one["caption_alt_text_description"] for one in records)
    with pytest.raises(UserError, match="There is no language"):
        Recipe(train_languages=("dd",)).training_rows(corpus)
    with pytest.raises(UserError, match="weight 0"):
        Recipe(reference_weight=0, attribution_weight=0, alt_weight=0)
