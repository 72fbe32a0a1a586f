"""TIP: the released code's numbers, batches, parts that can be left out, and training on real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polymodal.data.columns.table import TableColumn
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.table import TableEncoderConfig
from polymodal.modalities.table import TableRows
from polymodal.objectives.image_text_matching import ITMPairs
from polymodal.recipes.science import tip

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


def test_losses_and_gradients_are_those_of_the_released_code(
    released: tip.TIPClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, texts, images = torch.arange(5), GOLDEN["negative_rows"], GOLDEN["negative_images"]
    pairs = ITMPairs(
        torch.cat([own, own, images]), torch.cat([own, texts, own]), (torch.arange(15) < 5).long(), torch.ones(15) > 0
    )
    monkeypatch.setattr(tip, "sample_itm_pairs", lambda *arguments: pairs)
    batch: tip.TablePairBatch = {
        "image": GOLDEN["image"],
        "table": rows(),
        "corrupted": rows("corrupted."),
        "masked_cells": GOLDEN["masked_cells"],
    }
    losses = released.losses(batch)
    for name, loss in losses.items():
        torch.testing.assert_close(3 * loss, GOLDEN[name], rtol=1e-5, atol=1e-5)
    torch.stack(list(losses.values())).sum().backward()
    for name in (name for name in GOLDEN if name.startswith("gradient.")):
        gradient = released.get_parameter(name.removeprefix("gradient.")).grad
        torch.testing.assert_close(gradient, GOLDEN[name], rtol=1e-5, atol=1e-5)


def test_rows_with_missing_cells_are_encoded_imputed_and_classified_as_by_the_released_code(
    released: tip.TIPClassifier,
) -> None:
    batch: tip.ImageTableBatch = {"image": GOLDEN["image"], "table": rows().mask(GOLDEN["missing"])}
    tokens = released.encode_table(batch["table"])[:, [0, 4, 5, 1, 2, 3]]  # there, categories come first
    torch.testing.assert_close(tokens, GOLDEN["table_tokens"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(released.classify(batch), GOLDEN["class_logits"], rtol=1e-5, atol=1e-5)
    numbers, (first, second) = released.impute(batch)
    torch.testing.assert_close(numbers, GOLDEN["imputed_numbers"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first, GOLDEN["imputed_categories"][:, 0, :3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second, GOLDEN["imputed_categories"][:, 1, 3:], rtol=1e-5, atol=1e-5)
