"""Regions of interest, descriptions of five fields, their facts, and the retrieval of knowledge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from polymodal.corpora.scenes import Sprite, compose, place_name
from polymodal.curation.knowledge import KnowledgeBase
from polymodal.curation.multigranular import (
    NOTHING_FOUND,
    Metadata,
    Sources,
    Statement,
    factual_precision,
    prompt,
    reformat,
    scene_facts,
    statements,
    write_description,
)
from polymodal.curation.regions_of_interest import (
    ColorDetector,
    RegionOfInterest,
    connected_components,
    foreground,
    regions_of_mask,
)
from polymodal.errors import UserError
from polymodal.modalities.region import Region

COLORS = {"disk": "red", "bar": "blue"}


def sprite(name: str) -> Sprite:
    ink = {"red": (220, 20, 20), "blue": (30, 40, 230)}[COLORS[name]]
    return Sprite(name, PILImage.new("RGBA", (40, 40) if name == "disk" else (40, 16), (*ink, 255)), COLORS[name])


def test_boxes_have_x_from_columns_and_words_are_those_of_the_viewer() -> None:
    mask = np.zeros((30, 60), np.uint8)
    mask[2:6, 50:58] = 1
    [region] = regions_of_mask(mask, ["disk"])
    assert (region.box, region.place, region.extent) == ((50, 2, 58, 6), "top right", "small")
    assert region.area == 32 / 1800
    [flipped] = regions_of_mask(mask[:, ::-1].copy(), ["disk"])
    assert flipped.place == "top left"
    for left, top in np.random.default_rng(0).integers(0, 86, (40, 2)).tolist():
        part = np.zeros((96, 96), bool)
        part[top : top + 10, left : left + 10] = True
        box = (left, top, left + 10, top + 10)
        assert RegionOfInterest("", box, part).place == place_name([*box])


def test_without_a_region_there_is_no_box_and_the_description_says_so() -> None:
    assert regions_of_mask(np.zeros((8, 8), np.uint8), ["disk"]) == []
    assert [one.name for one in regions_of_mask(np.array([[0, 2], [2, 2]], np.uint8), ["disk", "bar"])] == ["bar"]
    text = write_description(Sources(np.zeros((8, 8, 3), np.uint8), Metadata("scan"), []))
    described = reformat(text)
    assert described is not None
    assert described.roi == NOTHING_FOUND


def test_reformatting_orders_the_fields_and_rejects_incomplete_texts() -> None:
    text = "ROI: c. Modality: a. Structure: b.\nRelation: e. Texture: d."
    assert reformat(text) == ("a.", "b.", "c.", "d.", "e.")
    assert reformat(text.lower()) == reformat(text)
    assert str(reformat(text)) == "Modality: a. Structure: b. ROI: c. Texture: d. Relation: e."
    without, empty = text.replace("ROI: c.", ""), text.replace("ROI: c.", "ROI:")
    for broken in (without, empty, f"{text} ROI: f.", f"Well, {text}", ""):
        assert reformat(broken) is None


def test_a_description_states_the_facts_of_its_scene_as_far_as_its_sources_go() -> None:
    sprites, right = [sprite("disk"), sprite("bar")], dict[str, list[Any]](full=[], flipped=[])
    for seed in range(20):
        image, _, regions = compose(sprites, np.random.default_rng(seed), 64)
        if len(connected_components(foreground(np.asarray(image)))) < 2:
            continue  # they touch, and are one region for the detector
        facts = scene_facts([Region(one["name"], tuple(one["box"])) for one in regions], COLORS, 64)
        metadata, pixels = Metadata("drawing", findings=("disk", "bar")), np.asarray(image)
        snippets = ("A bar is a rod.", "A discotheque is a place.", "A disk is round.")
        for name, shown in (("full", pixels), ("flipped", pixels[:, ::-1].copy())):
            sources = Sources(shown, metadata, ColorDetector(COLORS)(shown, metadata.findings), snippets)
            described = reformat(write_description(sources))
            assert described is not None
            right[name].append((statements(described), facts))
        asked = prompt(sources)[1]["content"]
        assert "a drawing with disk and bar\nRegions: The disk is at the" in asked
        assert "- A disk is round." in asked
        blind = reformat(write_description(Sources(pixels, metadata)))
        assert blind is not None
        assert {fact.kind for fact in statements(blind)} == {"shows"}
    of_image = ("shows", "place", "size", "color", "relation")
    precision = factual_precision(right["full"])
    assert {kind: precision[kind] for kind in of_image} == dict.fromkeys(of_image, 1.0)
    assert precision["knowledge"] == 0.0  # of which the scene knows nothing
    retrieved = {one.words[0] for one in right["full"][0][0] if one.kind == "knowledge"}
    assert retrieved == {"A bar is a rod.", "A disk is round."}
    assert factual_precision(right["flipped"])["place"] < 0.8
    assert Statement("shows", ("bar",)) in right["full"][0][0]


def test_retrieval_gives_distinct_snippets_and_the_query_has_no_answer() -> None:
    texts = ["a cat purrs", "A cat  purrs", "a cat hunts a mouse", "dogs bark", "the sea"]
    base = KnowledgeBase.fit(texts)
    assert base.search(["a photo with cat", "nothing"], 3) == [["A cat  purrs", "a cat hunts a mouse"], []]
    dense = KnowledgeBase.fit(texts, lambda some: np.array([[one.lower().count("a"), 1.0] for one in some]))
    assert [len({*found}) for found in dense.search(["a photo", "the"], 3)] == [3, 3]
    metadata = Metadata("CT", "chest", ("tumor",))
    assert metadata.coarse_caption() == "a CT of chest with tumor"
    assert "tumor" not in metadata.coarse_caption(with_findings=False)
    with pytest.raises(UserError, match="has no text"):
        KnowledgeBase.fit([" "])
