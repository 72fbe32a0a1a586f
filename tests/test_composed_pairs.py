"""Composed queries: transformations, the pairs of an image, and the task on a method whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from polymodal.corpora import Corpus
from polymodal.corpora.in_memory import from_table
from polymodal.data.composed_pairs import group_of, positional
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.tasks.composed_retrieval import (
    first_place,
    question_scores,
    recall,
    recall_of_groups,
    region_scores,
    similarities,
    task,
    transformation_scores,
    transformed,
)
from polymodal.modalities.image_transformations import EVALUATED, FAMILIES, transformations
from polymodal.modalities.question import Question
from polymodal.modalities.region import Region
from polymodal.modalities.text import Tokens
from polymodal.models.joint_vocabulary import codes_before_text
from polymodal.recipes.dual_encoders import clip, fuselip
from polymodal.rng import ExampleRNG


def test_transformations_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    made = {family: transformations(image, family, EVALUATED[family], rng) for family in FAMILIES}
    assert {family: len(found) for family, found in made.items()} == dict(EVALUATED)
    assert all(one.target.shape == image.shape for found in made.values() for one in found)
    turned = {one.instruction: one.target for one in made["rotate"]}
    assert np.array_equal(turned["rotate 90 degrees clockwise"], np.rot90(image, -1))
    assert all(
        np.array_equal(one.target, one.source[:, ::-1] if "horizontal" in one.instruction else one.source[::-1])
        for one in made["flip"]
    )
    flat = np.zeros((16, 16, 3), np.uint8)
    flat[8:, :8] = 200
    crops = {one.instruction: one.target.mean() for one in transformations(flat, "crop", 9, rng)}
    assert max(crops, key=lambda name: crops[name]) == "crop to lower left"


def test_a_group_has_its_caption_and_different_queries() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    regions = [Region("cat", (0, 0, 400, 400)), Region("cat", (500, 0, 900, 400)), Region("bus", (200, 500, 700, 900))]
    assert positional(regions) == [("the left cat", 0), ("the right cat", 1)]
    regions.append(Region("dog", (600, 600, 1000, 1000)))  # "the right object", too
    questions = [Question("how many?", "3", "count"), Question("how much?", "3", "count")]
    for seed in range(20):
        pairs = group_of(image, "cats", regions, questions, 6, np.random.default_rng(seed))
        assert len(pairs) == 6
        assert (pairs[0].left.text, pairs[0].right.text) == ("", "cats")
        queries = {(pair.left.image.tobytes(), pair.left.text) for pair in pairs}
        assert len(queries) == 6
        assert all(pair.left.text != "cat" for pair in pairs)  # a name of two regions says neither
        # A region by its place and by its name had the same crop, which were its own negative.
        of_regions = [pair for pair in pairs if pair.left.text.split()[0:1] in (["the"], ["bus"], ["dog"])]
        crops = [pair.right.image.tobytes() for pair in of_regions if pair.right.image is not None]
        assert len({*crops}) == len(crops)
    assert len({*ExampleRNG.of(0, 0, 3).split(4).seeds.tolist()}) == 12


def test_ties_are_wrong_and_a_short_context_is_refused() -> None:
    similarity = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert first_place(similarity, torch.tensor([0, 1, 0])).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="--context-length above 18"):
        fuselip.Recipe(context_length=18)


class Alike(nn.Module):
    """Embeds images by their pixels and every text alike: finds what is most like the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        vectors = {}
        if "image" in batch:
            vectors["image"] = nn.functional.normalize(batch["image"].flatten(1), dim=1)
        if "text" in batch:
            vectors["text"] = torch.ones(len(batch["text"]), 3 * 32 * 32)
        return vectors

    def embed_composed(self, batch: dict[str, Any]) -> Tensor:
        return nn.functional.normalize(batch["image"].flatten(1), dim=1)


def test_a_method_that_never_reads_the_instruction_is_at_chance(corpus: Corpus) -> None:
    recipe = fuselip.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    for family, expected in (("crop", 1 / 9), ("rotate", 1 / 18)):
        groups = [transformed(image, family, number) for number, image in enumerate(images)]
        [score] = recall(family, recall_of_groups(similarities(Alike(), processor, groups)).values())
        assert score.value == pytest.approx(expected)  # the same result is the most similar to every query
        assert score.chance == pytest.approx(expected)
    reader = Reader(corpus, processor)
    kinds = (transformation_scores, region_scores, question_scores)
    found = [score for kind in kinds for score in kind(Alike(), processor, reader, "test")]
    names = {score.name for score in found}
    assert {"test/tgit/R@1", "test/vqa_retrieval/accuracy"} <= names
    assert all(task.kind_of(score.name).higher_is_better and 0 < score.chance < 1 for score in found)
    assert not isinstance(clip.Recipe.tiny().build(processor), task.capability)


def test_an_image_that_an_operation_leaves_as_it_is_keeps_its_other_operations() -> None:
    rng = np.random.default_rng(0)
    colored = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    gray = np.repeat(rng.integers(0, 256, (32, 32, 1), dtype=np.uint8), 3, axis=2)
    corpus = from_table(
        [
            {"image": PILImage.fromarray(image), "caption": "some noise", "split": split}
            for split in ("train", "test")
            for image in (*colored, gray)
        ]
    )
    processor = fit_processor(fuselip.Recipe.tiny(), corpus)
    found = transformation_scores(Alike(), processor, Reader(corpus, processor), "test")
    assert {score.name: len(score.clusters) for score in found} == {
        "test/tgit/R@1": 3,
        **{f"test/tgit/{family}/R@1": 2 if family == "grayscale" else 3 for family in FAMILIES},
    }


def test_long_sequences_keep_their_end_token() -> None:
    text = Tokens(torch.tensor([[1, 5, 6, 7, 2], [1, 2, 0, 0, 0]]), torch.tensor([5, 2]))
    codes, has_image = torch.tensor([[11, 12], [0, 0]]), torch.tensor([True, False])
    rows = codes_before_text(codes, text, has_image, 5)
    assert rows.ids[0].tolist() == [11, 12, 1, 5, 2]
    assert rows.ids[1, :2].tolist() == [1, 2]
    assert rows.lengths.tolist() == [5, 2]
