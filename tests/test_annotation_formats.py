"""Formats of annotation files beside images: COCO, Karpathy's splits, VQA, RefCOCO, Flickr30k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from format_samples import SAMPLES, png
from polymodal.corpora import from_path
from polymodal.corpora.formats._json_head import json_head
from polymodal.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def sizes(corpus: Any) -> dict[str, int]:
    return {split: len(rows) for split, rows in corpus.splits.items()}


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("cut", range(1, 60))
def test_the_head_of_a_json_file_is_a_part_of_its_value(cut, tmp_path):
    text = '{"a": [{"b": "x,}]\\"", "c": [1, 2]}, {"d": {}}], "e": "y", "f": [[], null]}'
    (tmp_path / "a.json").write_text(text[:cut])
    head = json_head(tmp_path / "a.json")
    whole = json.loads(text)
    assert set(head or {}) <= set(whole)
    if cut > 38:
        assert head["a"][0] == whole["a"][0]


# COCO


def test_coco_joins_captions_and_boxes_of_an_image(tmp_path):
    corpus = from_path(SAMPLES["coco"](tmp_path))
    assert sizes(corpus) == {"train": 9, "validation": 3}
    assert {name: type(kind).__name__ for name, kind in corpus.columns.items()} == {
        "image": "Image",
        "captions": "Text",
        "regions": "Regions",
    }
    example = corpus[10]
    assert [caption.text for caption in example["captions"]] == [f"thing 10, said {place}" for place in range(5)]
    assert example["regions"] == [("dog", (1, 2, 4, 4))]
    assert corpus.key(10) == "val2017/000000000010.jpg"
    assert any("segmentation" in note for note in corpus.notes)


def test_coco_by_the_annotation_file_alone(tmp_path):
    SAMPLES["coco"](tmp_path)
    corpus = from_path(tmp_path / "annotations" / "captions_train2017.json")
    assert len(corpus) == 9
    assert set(sizes(corpus)) == {"train", "validation", "test"}
    assert len(corpus.value(3, "captions")) == 5


def test_coco_with_the_images_beside_the_file(tmp_path):
    for split in ("train", "valid"):
        for number in range(4):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / f"{number}.png").write_bytes(png(number + 4 * (split == "valid")))
        images = [{"id": number, "file_name": f"{number}.png", "width": 8, "height": 6} for number in range(4)]
        boxes = [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 20, 5], "iscrowd": 0},
            {"id": 2, "image_id": 0, "category_id": 1, "bbox": [2, 0, -1, 5], "iscrowd": 0},
            {"id": 3, "image_id": 0, "category_id": 1, "bbox": [2, 0, 1, 5], "iscrowd": 1},
            {"id": 4, "image_id": 9, "category_id": 1, "bbox": [2, 0, 1, 5], "iscrowd": 0},
        ]
        held = {"annotations": boxes, "images": images, "categories": [{"id": 1, "name": "cat"}]}
        written(tmp_path / split / "_annotations.coco.json", held)
    corpus = from_path(tmp_path)
    assert sizes(corpus) == {"train": 4, "validation": 4}
    assert [corpus.key(row) for row in (0, 4)] == ["train/0.png", "valid/0.png"]
    assert corpus.value(4, "regions") == [("cat", (0, 0, 8, 5))]
    assert corpus.value(1, "regions") == []
    assert sorted(skipped.count for skipped in corpus.skipped) == [1] * 6


def test_coco_of_images_that_are_only_partly_there(tmp_path):
    SAMPLES["coco"](tmp_path)
    for file in sorted((tmp_path / "train2017").iterdir())[:5]:
        file.unlink()
    corpus = from_path(tmp_path)
    assert sizes(corpus) == {"train": 4, "validation": 3}
    assert [skipped.count for skipped in corpus.skipped] == [10]  # in two files
    for file in (tmp_path / "train2017").iterdir():
        file.unlink()
    corpus = from_path(tmp_path)
    assert set(sizes(corpus)) == {"train", "validation", "test"}
    assert any("of the split 'validation'" in note for note in corpus.notes)
    for file in (tmp_path / "val2017").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no image of it is in .*; put the images there"):
        from_path(tmp_path)


def test_coco_follows_folders_that_are_links(tmp_path):
    SAMPLES["coco"](tmp_path)
    for split in ("train2017", "val2017"):
        (tmp_path / split).rename(tmp_path / f"elsewhere {split}")
    (tmp_path / "coco").mkdir()
    (tmp_path / "annotations").rename(tmp_path / "coco" / "annotations")
    for split in ("train2017", "val2017"):
        (tmp_path / "coco" / split).symlink_to(tmp_path / f"elsewhere {split}")
    assert sizes(from_path(tmp_path / "coco")) == {"train": 9, "validation": 3}


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_coco_names_no_image_outside_the_folder(name, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(1))
    held = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "caption": "x"}]}
    written(tmp_path / "in" / "captions.json", held)
    with pytest.raises(UserError, match=r"names the image .*secret.png, which is outside the folder"):
        from_path(tmp_path / "in")


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (
            '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "capt',
            "cannot be read as JSON",
        ),
        ('{"images": [{"id": 1, "file_name": "0.png"}, {"id": 2}], "annotations": []}', "number 2 of its images"),
        ('{"images": [{"id": 1, "file_name": "0.png"}], "annotations": {"image_id": 1}}', "is no list of records"),
        (
            '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "category_id": 3}]}',
            "neither",
        ),
    ],
)
def test_what_is_no_coco_file_is_a_sentence(held, sentence, tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "a.json").write_text(held)
    with pytest.raises(UserError, match=sentence):
        from_path(tmp_path / "a.json")
