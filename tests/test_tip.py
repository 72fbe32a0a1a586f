"""TIP: the released code's numbers, batches, parts that can be left out, and training on real data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polymodal.corpora import Corpus
from polymodal.data.columns.table import TableColumn
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.table import TableEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation.tasks.table_imputation import imputation_scores
from polymodal.modalities.table import TableRows
from polymodal.objectives.image_text_matching import ITMPairs
from polymodal.recipes.science import tip
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget

GOLDEN = {name: torch.from_numpy(a) for name, a in np.load(Path(__file__).parent / "golden" / "tip.npz").items()}


class Tokens(Encoder):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        tokens = image.flatten(2).transpose(1, 2)
        return tokens, tokens[:, 0]


@pytest.fixture
def released() -> tip.TIPClassifier:
    """A model with the weights of the released one."""
    image, table = ImageEncoderConfig(width=3, num_heads=1), TableEncoderConfig(width=16, num_heads=8)
    recipe = tip.Recipe(image=image, table=table, fusion_depth=1, embed_dim=6)
    columns = TableColumn(["a", "b", "c"], {"d": "xyz", "e": "xy"}, shares=[[1.0, 0, 0], [1.0, 0]])
    model = tip.TIPClassifier(recipe, columns, 3)
    model.image_encoder = Tokens()
    model.load_state_dict({name[6:]: value for name, value in GOLDEN.items() if name.startswith("state.")})
    return model


def rows(prefix: str = "") -> TableRows:
    return TableRows(GOLDEN[f"{prefix}numbers"], GOLDEN[f"{prefix}categories"])


def assert_released(value: Tensor | None, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_losses_and_gradients(released: tip.TIPClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    own, texts, images = torch.arange(5), GOLDEN["negative_rows"], GOLDEN["negative_images"]
    labels, valid = (torch.arange(15) < 5).long(), torch.ones(15, dtype=torch.bool)
    pairs = ITMPairs(torch.cat([own, own, images]), torch.cat([own, texts, own]), labels, valid)
    monkeypatch.setattr(tip, "sample_itm_pairs", lambda *arguments: pairs)
    masked = GOLDEN["masked_cells"]
    losses = released.losses(
        {"image": GOLDEN["image"], "table": rows(), "corrupted": rows("corrupted."), "masked_cells": masked}
    )
    for name, loss in losses.items():
        assert_released(3 * loss, GOLDEN[name])
    torch.stack(list(losses.values())).sum().backward()
    for name in (name for name in GOLDEN if name.startswith("gradient.")):
        assert_released(released.get_parameter(name.removeprefix("gradient.")).grad, GOLDEN[name])


def test_rows_with_missing_cells(released: tip.TIPClassifier) -> None:
    batch: tip.ImageTableBatch = {"image": GOLDEN["image"], "table": rows().mask(GOLDEN["missing"])}
    tokens = released.encode_table(batch["table"])[:, [0, 4, 5, 1, 2, 3]]  # there, categories come first
    assert_released(tokens, GOLDEN["table_tokens"])
    assert_released(released.classify(batch), GOLDEN["class_logits"])
    numbers, (first, second) = released.impute(batch)
    assert_released(numbers, GOLDEN["imputed_numbers"])
    assert_released(first, GOLDEN["imputed_categories"][:, 0, :3])
    assert_released(second, GOLDEN["imputed_categories"][:, 1, 3:])


@pytest.mark.parametrize(
    "choice", [{}, {"missing_strategy": "mean", "use_mtr": False}, {"classifier_features": ("image",)}]
)
def test_one_of_four_cells_is_resampled_two_are_masked_and_parts_can_be_left_out(choice: dict, corpus: Corpus) -> None:
    recipe = dataclasses.replace(tip.Recipe.tiny(), **choice)
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    batch = recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    numbers = batch["corrupted"].numbers.nan_to_num(9) != batch["table"].numbers.nan_to_num(9)
    changed = numbers.sum(1) + (batch["corrupted"].categories != batch["table"].categories).sum(1)
    assert (changed <= 1).all()  # 30 % of four, rounded down
    assert changed.any()
    assert (batch["masked_cells"].sum(1) == 2).all()
    model = recipe.build(processor)
    assert set(model.losses(batch)) == {"itc", "itm"} | ({"mtr"} if recipe.use_mtr else set())
    labelled = recipe.labelled_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    assert list(model.features(labelled)) == list(recipe.classifier_features)
    nothing = TableRows(torch.full((1, 2), torch.nan), torch.full((1, 2), -1))
    assert model.table_encoder.fill_missing(nothing).missing.all() == (recipe.missing_strategy == "token")


@pytest.mark.parametrize("choice", ["classifier_features", "finetune_missing_rates"])
def test_heads_and_rates_are_one_or_more(choice: str, corpus: Corpus) -> None:
    recipe = dataclasses.replace(tip.Recipe.tiny(), **{choice: ()})
    with pytest.raises(UserError, match="one value or more"):
        recipe.build(fit_processor(recipe, corpus))


def test_masked_cells_are_imputed_better_with_their_own_image(corpus: Corpus) -> None:
    """Colors of images tell hue and shade."""
    image = ImageEncoderConfig(image_size=32, patch_size=16, width=32, depth=1)
    recipe = dataclasses.replace(tip.Recipe.tiny(), image=image, finetune_fraction=0.0, batch_size=12)
    # A larger learning rate ends within 60 steps, and at scores that depend on the rounding of the processor.
    recipe = dataclasses.replace(recipe, optimizer=OptimizerConfig(learning_rate=3e-3))
    run = train(recipe, corpus, Budget(steps=120))
    scores = {s.name: s for s in imputation_scores(run.model, run.processor, Reader(corpus, run.processor), "train")}
    assert scores["train/imputation/mse"].value < scores["train/imputation/mse"].chance
    assert scores["train/imputation/mse_reduction_by_image"].value > 0.2
    assert scores["train/imputation/accuracy_gain_by_image"].value > 0.1
