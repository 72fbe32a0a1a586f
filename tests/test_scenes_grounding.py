"""The scores of where: a method that knows every patch gets everything, one that knows nothing gets chance."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image as PILImage
from torch import nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks.grounding import grounding_scores, plot
from polymodal.modalities.image import encoded
from polymodal.recipes.dual_encoders import clip


class Oracle(nn.Module):
    """Patch vectors and name vectors made from the truth, or at random."""

    def __init__(self, corpus, split, processor, knows: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.knows, self.processor, self.next = knows, processor, 0
        self.examples = [corpus[row] for row in corpus.rows(split)]
        names = sorted({region.name.lower() for example in self.examples for region in example["regions"]})
        self.numbers = {name: number for number, name in enumerate(names)}

    def embed(self, batch):
        texts = self.processor.tokenizer.decode(batch["text"])
        return {"text": F.one_hot(torch.tensor([self.numbers[text] for text in texts]), len(self.numbers)).float()}

    def encode_patches(self, image):
        vectors = torch.zeros(len(image), 64, len(self.numbers))
        for vector in vectors:
            example, self.next = self.examples[self.next], self.next + 1
            if not self.knows:
                vector.copy_(F.normalize(torch.randn(vector.shape), dim=-1))
                continue
            for number, region in enumerate(example["regions"], start=1):
                covered = torch.from_numpy(example["mask"] == number).float()[None, None]
                share = F.adaptive_avg_pool2d(covered, 8).flatten()
                vector[:, self.numbers[region.name.lower()]] = share
        return vectors


@pytest.fixture(scope="module")
def few_scenes(scenes):
    return scenes.with_splits({"train": scenes.rows("train")[:200], "test": scenes.rows("test")[:60]})


@pytest.mark.parametrize("knows", [True, False])
def test_grounding_scores_of_an_oracle_and_of_noise(few_scenes, knows):
    torch.manual_seed(0)
    processor = fit_processor(clip.Recipe(), few_scenes)
    oracle = Oracle(few_scenes, "test", processor, knows)
    found = grounding_scores(oracle, processor, Reader(few_scenes, processor), "test")
    scores = {score.name: score for score in found}
    overlap, pointing = scores["test/segmentation/mIoU"], scores["test/pointing_game/accuracy"]
    region = scores["test/phrase_grounding/R@1"]
    if knows:
        assert overlap.value > 0.8
        assert pointing.value > 0.9
        assert region.value > 0.9
    else:
        assert overlap.value == pytest.approx(overlap.chance, abs=0.06)
        assert pointing.value == pytest.approx(pointing.chance, abs=0.08)
        assert region.value < 0.1
    assert len(overlap.clusters) == 60
    assert not np.isnan(overlap.clusters).any()


def annotated(corpus: Corpus, regions: list[Any], masks: list[bytes | None]) -> Corpus:
    """The first test rows of a corpus with other regions and masks."""
    table = corpus.table.take(corpus.rows("test")[: len(regions)])
    for name, values in (("regions", regions), ("mask", masks)):
        place = table.column_names.index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, field.type))
    return dataclasses.replace(corpus, table=table, splits={"train": np.arange(0), "test": np.arange(len(regions))})


def test_rows_without_an_object_in_their_mask_are_left_out(few_scenes):
    processor = fit_processor(clip.Recipe(), few_scenes)
    rows = few_scenes.rows("test")[:6]
    regions = [few_scenes.raw(row, "regions") for row in rows]
    masks = [few_scenes.raw(row, "mask") for row in rows]
    outside = {"name": "outside", "box": [0, 0, 1, 1]}  # an object without a pixel
    regions[1], regions[2] = [], None
    regions[3] = [regions[3][0] | {"name": None}, *regions[3][1:], outside]
    masks[4], masks[5] = None, encoded(PILImage.new("L", (96, 96)))
    sparse = annotated(few_scenes, regions, masks)
    torch.manual_seed(0)
    method = clip.Recipe().build(processor)
    found = grounding_scores(method, processor, Reader(sparse, processor), "test")
    scores = {score.name: score for score in found}
    # Of rows 0 and 3, of which the second has one object less.
    assert len(scores["test/segmentation/mIoU"].clusters) == len(scores["test/pointing_game/accuracy"].clusters) == 2
    names = {region["name"] for region in [*regions[0], *regions[3][1:-1]]}
    assert len(scores["test/phrase_grounding/R@1"].clusters) == len(names)
    assert all(np.isfinite(score.clusters).all() for score in found)
    shown = plot(TaskInputs(method, processor, Reader(sparse, processor))).rows
    assert {len(row) for row in shown} == {4}  # image, mask, prediction, names
    for kept in ([1], [2, 4]):
        none = annotated(few_scenes, [regions[row] for row in kept], [masks[row] for row in kept])
        reader = Reader(none, processor)
        assert grounding_scores(method, processor, reader, "test") == []
        assert [len(row) for row in plot(TaskInputs(method, processor, reader)).rows] == [1]
