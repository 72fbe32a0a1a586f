"""Retrieval of regions and texts, on a method whose answers are known, and on rows without regions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.regions import PhraseBox
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.evaluation.tasks.region_retrieval import region_text_scores
from polymodal.recipes.dual_encoders import cloc

NAMES = ("ant", "bee", "cat")
BOXES = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])


class Numbers(Processor):
    """Texts are the numbers of their names."""

    def __init__(self) -> None:
        pass

    def __call__(self, **columns: Any) -> dict[str, Tensor]:
        numbered = {"text": [NAMES.index(text) for text in columns.pop("text", ())]}
        columns |= numbered if numbered["text"] else {}
        return {
            name: torch.stack(all_of) if name == "image" else torch.tensor(all_of) for name, all_of in columns.items()
        }


class Examples(Reader):
    def __init__(self, *names: tuple[str, ...]):
        of_names = [[PhraseBox(one, tuple(BOXES[NAMES.index(one)].tolist())) for one in some] for some in names]
        self.examples = [{"image": torch.zeros(3, 8, 8), "regions": regions} for regions in of_names]
        self.examples.append({"image": torch.zeros(3, 8, 8)})  # a row without regions

    def read_split(self, split: str, most: int | None = None) -> tuple[np.ndarray, list[Any]]:
        return np.arange(len(self.examples)), self.examples


class Known(nn.Module):
    """Takes every box and every name for the one that comes `turn` later; `flat` has the same vector for all."""

    num_queries = 1

    def __init__(self, turn: int, flat: bool = False):
        super().__init__()
        self.weight, self.turn, self.flat = nn.Parameter(torch.zeros(())), turn, flat

    def vectors(self, numbers: Tensor) -> Tensor:
        return torch.ones(len(numbers), 3) if self.flat else F.one_hot(numbers % 3, 3).float()

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"text": self.vectors(batch["text"])}

    def encode_regions(self, batch: dict[str, Any]) -> Tensor:
        return self.vectors(torch.cdist(batch["box"], BOXES).argmin(1) + self.turn)

    def predict_boxes(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        return {"known": (BOXES[(batch["text"] + self.turn) % 3][:, None], torch.ones(len(batch["text"]), 1))}


def scores_of(method: Known, *names: tuple[str, ...]) -> dict[str, Any]:
    scores = region_text_scores(method, Numbers(), Examples(*names), "test")
    return {score.name.removeprefix("test/"): score for score in scores}


@pytest.mark.parametrize(("method", "expected"), [(Known(0), 1.0), (Known(1), 0.0), (Known(0, flat=True), 0.0)])
def test_a_right_method_finds_all_and_a_wrong_or_flat_one_nothing(method: Known, expected: float) -> None:
    scores = scores_of(method, ("ant", "bee"), ("cat", "ant", "ant"))  # repeated names, in an image too
    for name in ("region_to_text/R@1", "text_to_region/R@1", "region_recognition/mAcc"):
        assert scores[name].value == pytest.approx(expected), name
    assert scores["region_recognition/mAcc"].chance == pytest.approx(1 / 3)
    # A random one of five regions is one of three ants, the bee, or the cat.
    assert scores["text_to_region/R@1"].chance == pytest.approx((3 + 1 + 1) / 5 / 3)


def test_predicted_boxes_are_compared_with_those_of_phrases_that_an_image_has_once() -> None:
    right, wrong = (scores_of(Known(turn), ("ant", "bee"), ("cat", "ant", "ant")) for turn in (0, 1))
    assert right["region_grounding/mean_IoU"].value == pytest.approx(1)
    assert right["region_grounding/box_error"].value == pytest.approx(0)
    # ant, bee and cat in place of bee, cat and ant: the last two overlap by a quarter.
    assert wrong["region_grounding/mean_IoU"].value == pytest.approx((0 + 1 / 4 + 1 / 4) / 3)
    assert wrong["region_grounding/acc@0.5"].value == 0
    assert wrong["region_grounding/box_error"].value == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)


def test_a_single_region_has_no_other_box_as_chance() -> None:
    scores = scores_of(Known(0), ("bee",))
    assert scores["region_to_text/R@1"].value == 1
    assert scores["region_grounding/mean_IoU"].chance is scores["region_grounding/acc@0.5"].chance is None
    assert scores_of(Known(0), ()) == {}


def test_rows_without_regions_are_scored(corpus: Corpus) -> None:
    recipe = cloc.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    kept, place = corpus.rows("test")[:2].tolist(), corpus.table.schema.get_field_index("regions")
    stored = [one if row in kept else None for row, one in enumerate(corpus.table.column("regions").to_pylist())]
    column = pa.array(stored, corpus.table.schema.field("regions").type)
    sparse = dataclasses.replace(corpus, table=corpus.table.set_column(place, "regions", column))
    scores = region_text_scores(recipe.build(processor), processor, Reader(sparse, processor), "test")
    assert {score.name: score.value for score in scores}["test/region_to_text/R@10"] == 1
