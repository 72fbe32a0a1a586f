"""WebLI-100B: which pairs its arms are trained on, languages with probabilities of their own, dropped image tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.languages import with_language_temperature
from polymodal.data.loader import Reader, TrainingData
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import siglip
from polymodal.recipes.dual_encoders.webli_100b import Recipe
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.training.optimizer import learning_rate
from polymodal.training.stage_setup import in_order
from polymodal.types import Budget

TINY = Recipe.tiny()


@pytest.fixture(scope="module")
def tagged(corpus: Corpus) -> Corpus:
    """Every fourth training example is in Swahili; scores fall with the row."""
    texts = corpus.table.column("text").to_pylist()
    spoken = [[{**text, "language": "sw" if row % 4 == 0 else "en"} for text in of] for row, of in enumerate(texts)]
    table = with_texts(corpus, spoken).append_column("score", [[f"-{row}.0" for row in range(len(corpus))]])
    return dataclasses.replace(corpus, table=table)


def with_texts(corpus: Corpus, texts: list[Any]) -> pa.Table:
    place = corpus.table.column_names.index("text")
    return corpus.table.set_column(place, "text", pa.array(texts, corpus.table.schema.field("text").type))


def rows(corpus: Corpus, **fields: Any) -> list[int]:
    return dataclasses.replace(TINY, **fields).training_rows(corpus).tolist()


def test_arms_select_nested_samples_then_values_then_quality(tagged: Corpus) -> None:
    small, large = rows(tagged, unique_fraction=0.25), rows(tagged, unique_fraction=0.5)
    assert len(small) == 6
    assert {*small} < {*large} < {*rows(tagged)}
    assert rows(tagged, unique_fraction=0.5, subset_seed=1) != large
    swahili = rows(tagged, unique_fraction=0.5, where=("language=sw",))
    assert swahili == [row for row in large if row % 4 == 0]
    red = rows(tagged, where=("label=red",))
    assert {tagged.raw(row, "label") for row in red} == {"red"}
    assert rows(tagged, unique_fraction=0.5, quality_filter="score", quality_fraction=0.5) == large[:6]


def test_what_cannot_be_selected_is_one_sentence(tagged: Corpus) -> None:
    half = [str(row) if row % 2 else "" for row in range(len(tagged))]
    tagged = dataclasses.replace(tagged, table=tagged.table.append_column("half", [half]))
    assert rows(tagged, quality_filter="half", quality_fraction=0.5) == list(range(1, 24, 2))
    wrong: dict[str, dict[str, Any]] = {
        "takes COLUMN=VALUE": {"where": ("language",)},
        "column 'lable'": {"where": ("lable=red",)},
        "No training pair has label=pink": {"where": ("label=pink",)},
        "is neither": {"quality_filter": "scores"},
        "has no numbers": {"quality_filter": "label"},
        "stem": {"image": siglip.Recipe().image},
        "leaves no image token": {"mask_ratio": 0.99},
        "12 of 24 pairs have a score": {"quality_filter": "half", "quality_fraction": 0.6},
    }
    for message, fields in wrong.items():
        with pytest.raises(UserError, match=message):
            rows(tagged, **fields)
    for languages in (("te",), ("sw", "te")):
        with pytest.raises(UserError, match="language of the training pairs"):
            dataclasses.replace(TINY, low_resource_languages=languages).training_corpora(tagged)
    swahili = dataclasses.replace(TINY, low_resource_languages=("sw",))
    with pytest.raises(UserError, match="give one"):
        swahili.training_corpora(with_language_temperature(tagged, 3.0))
    with pytest.raises(UserError, match="low-resource-probability"):
        train(dataclasses.replace(swahili, low_resource_probability=0.0), tagged, Budget(steps=1))


def test_examples_seen_are_equal_and_low_resource_languages_have_their_probability(tagged: Corpus) -> None:
    recipe = dataclasses.replace(TINY, low_resource_languages=("sw",), low_resource_probability=0.5)
    epochs = recipe.epochs_by_language(tagged, 1200)
    assert epochs == pytest.approx({"en": 600 / 18, "sw": 100})
    run = train(recipe, tagged, Budget(steps=2))
    small = train(dataclasses.replace(TINY, unique_fraction=0.25), tagged, Budget(steps=2))
    assert small.record["examples"] == run.record["examples"] == 8
    ordered = in_order(tagged, recipe.stages()[0], 0, run, True, None)  # type: ignore[arg-type]
    data = TrainingData(Reader(ordered, run.processor), 4, 0, recipe.training_batch)
    chosen = np.concatenate([data.order[number] for number in range(50)])
    assert np.mean(chosen % 4 == 0) == pytest.approx(0.5, abs=0.02)
    both = [[{"text": "x", "language": "en"}, {"text": "y", "language": "sw"}]] * len(tagged)
    with pytest.raises(UserError, match="several languages"):
        recipe.training_corpora(dataclasses.replace(tagged, table=with_texts(tagged, both)))


def test_half_of_the_image_tokens_are_dropped_in_training_alone(corpus: Corpus) -> None:
    processor = fit_processor(TINY, corpus)
    torch.manual_seed(0)
    method = TINY.build(processor)
    examples = [processor.load_example(corpus, row) for row in range(4)]
    batch = TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    assert batch["kept"].shape == (4, TINY.image.num_patches // 2)
    # All tokens kept are SigLIP's encoder, and so is the loss of a batch without the key.
    every = torch.arange(TINY.image.num_patches).expand(4, -1)
    whole = {name: value for name, value in batch.items() if name != "kept"}
    torch.testing.assert_close(method.losses({**whole, "kept": every}), method.losses(whole))
    assert not torch.allclose(method.losses(batch)["sigmoid"], method.losses(whole)["sigmoid"])


def test_at_the_papers_start_a_positive_costs_ten_and_a_negative_nothing() -> None:
    recipe = Recipe.paper()
    scale, bias = recipe.logit_scale_init, recipe.logit_bias_init
    orthogonal = 0.0
    assert -math.log(1 / (1 + math.exp(-(scale * orthogonal + bias)))) == pytest.approx(10, abs=1e-3)
    assert -math.log(1 / (1 + math.exp(scale * orthogonal + bias))) < 1e-4
    # Weight decay is not multiplied by the learning rate in big_vision: a step shrinks weights by 1e-4 at the peak.
    optimizer = recipe.optimizer
    assert optimizer.learning_rate * optimizer.weight_decay == pytest.approx(1e-4)
    assert [learning_rate(optimizer, done) for done in (0.001, 0.002)] == pytest.approx([5e-4, 1e-3])
    assert learning_rate(optimizer, 0.0) < 5e-5
    assert (recipe.text.width, recipe.text.depth) == (recipe.image.width, recipe.image.depth) == (1280, 32)
