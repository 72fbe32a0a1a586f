"""`medtrinity`: the released scripts, triplets, and the stages of LLaVA-Tri."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from polymodal.claims.medtrinity import SIDE, questions_of
from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import save_corpus
from polymodal.corpora.scenes import Sprite, compose
from polymodal.curation import triplets
from polymodal.curation.knowledge import KnowledgeBase
from polymodal.curation.multigranular import (
    Metadata,
    Sources,
    option_question,
    write_description,
)
from polymodal.curation.regions_of_interest import (
    connected_components,
    tight_box,
)
from polymodal.curation.triplets import Generators, TripletOptions, write_triplets
from polymodal.errors import UserError
from polymodal.modalities import Category, Image, Mask, Modality
from polymodal.modalities.image import encoded
from polymodal.recipes.language_models.medtrinity import Recipe

GOLDEN = np.load(Path(__file__).parent / "golden" / "medtrinity.npz")
DISK = Sprite("disk", PILImage.new("RGBA", (40, 40), (220, 20, 20, 255)), "red")


def test_boxes_and_questions_about_labels_are_those_of_the_released_scripts() -> None:
    """tests/golden/medtrinity.txt; right and bottom are inclusive there."""
    for mask, boxes in zip(GOLDEN["masks"], GOLDEN["boxes"], strict=True):
        ours = [tight_box(part) for part in connected_components(mask, 2)]
        assert [(box[0], box[1], box[2] - 1, box[3] - 1) for box in ours if box] == [*map(tuple, boxes.tolist())]
    names = ("adipose", "background", "debris")
    for labels, (question, answer) in zip((["debris"], ["adipose", "debris"]), GOLDEN["conversations"], strict=True):
        ours = option_question(names, ",".join(labels))
        assert (f"<img> {ours['question']}", ours["answer"]) == (question, answer)


def test_questions_of_the_claim_have_the_places_of_its_own_scenes() -> None:
    box = [SIDE - 14, 2, SIDE - 2, 14]
    asked = questions_of([DISK], [{"name": "small disk", "box": box}], {"disk": "device"}, {"disk"}, "cat")
    answers = {one["kind"]: one["answer"] for one in asked if one["kind"] in ("place", "knowledge")}
    assert answers == {"place": "top right", "knowledge": "device"}


def masked_scenes(folder: Path) -> Corpus:
    def rows() -> Iterator[dict[str, Any]]:
        for number, split in enumerate(["train"] * 6 + ["test"] * 2):
            image, mask, _ = compose([DISK], np.random.default_rng(number % 7), 48)  # the last is the first
            values = {"image": encoded(image), "mask": encoded(PILImage.fromarray(mask)), "shape": "disk"}
            yield {"key": str(number), "split": split, **values}

    columns: dict[str, Modality] = {"image": Image(), "mask": Mask(), "shape": Category(("bar", "disk"))}
    about = About("masked", "composed for a test", "CC0-1.0", "a test", ("image", "mask"))
    return save_corpus(folder, about, columns, rows(), label="shape")


def test_triplets_keep_their_provenance_and_leave_out_test_images(tmp_path: Path, monkeypatch: Any) -> None:
    corpus = masked_scenes(tmp_path / "masked")
    good = write_description(Sources(np.zeros((4, 4, 3), np.uint8), Metadata("drawing")))
    monkeypatch.setattr(triplets, "check_generates_text", lambda run: None)
    monkeypatch.setattr(triplets, "describe", lambda run, images, **_: [good, *["no fields"] * (len(images) - 1)])
    captioner: Any = object()
    generators = Generators(KnowledgeBase.fit(["a disk is round"]), captioner=captioner)
    options = TripletOptions(modality="drawing", instruct_fraction=0.5, label_questions=True)
    made, counts = write_triplets(corpus, tmp_path / "triplets", options, generators)
    assert counts.duplicates == 1
    assert counts.described["B3"] == 1
    assert len(made) == sum(counts.described.values()) == 8 - counts.duplicates - counts.rejected["B3"]
    assert {made.raw(row, "provenance") for row in made.rows("test").tolist()} == {"B1"}
    for row in range(len(made)):
        [region], mask = made.value(row, "regions"), made.value(row, "mask")
        assert region.box == tight_box(mask == 1)
        assert [question.answer for question in made.value(row, "questions")] == ["disk"]
    with pytest.raises(UserError, match="not empty"):
        write_triplets(corpus, tmp_path / "triplets")
    with pytest.raises(UserError, match="No image of 'masked' got a description: 7 lack a field"):
        write_triplets(corpus, tmp_path / "none", generators=Generators(write=lambda sources: "ROI: it."))


def test_stages_train_connector_then_language_model_and_need_descriptions(tmp_path: Path) -> None:
    published = Recipe.paper()
    assert (published.tokens, published.freeze) == (576, ("image_encoder.encoder.*",))
    scales = [stage.lr_scale * published.optimizer.learning_rate for stage in published.stages()]
    assert scales == pytest.approx([2e-3, 2e-3, 2e-5, 2e-5])
    assert [stage.trainable for stage in published.stages()][1] == ("image_encoder.*",)
    with pytest.raises(UserError, match="curate medtrinity"):
        Recipe.tiny().training_corpora(masked_scenes(tmp_path / "masked"))
    connector = dataclasses.replace(Recipe().connector, kind="qformer", num_queries=7)
    with pytest.raises(UserError, match="no square grid"):
        dataclasses.replace(Recipe.tiny(), connector=connector)
