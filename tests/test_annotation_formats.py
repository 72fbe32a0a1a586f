"""Formats of annotation files beside images: COCO, Karpathy's splits, VQA, RefCOCO, Flickr30k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from format_samples import SAMPLES, png
from polymodal.corpora import from_path
from polymodal.corpora.formats._json_head import json_head
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.evaluation.task import TaskInputs


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


def test_refcoco_of_mdetr_is_expressions(tmp_path):
    images, boxes = [], []
    for number in range(12):
        (tmp_path / "train2014").mkdir(exist_ok=True)
        (tmp_path / "train2014" / f"COCO_train2014_{number:012d}.jpg").write_bytes(png(number))
        for place in range(2):
            key = 2 * number + place
            file = {"file_name": f"COCO_train2014_{number:012d}.jpg", "height": 6, "width": 8, "original_id": number}
            images.append({**file, "id": key, "caption": f"thing {place}", "dataset_name": "refcoco"})
            box = {"area": 6, "iscrowd": 0, "image_id": key, "category_id": 1, "id": key, "bbox": [1.0, 2.0, 3.0, 2.0]}
            boxes.append({**box, "tokens_positive": [[0, 5]]})
    held = {"info": [], "licenses": [], "images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    written(tmp_path / "finetune_refcoco_train.json", held)
    corpus = from_path(tmp_path)
    assert len(corpus) == 12
    assert set(corpus.columns) == {"image", "expressions"}
    assert corpus.value(5, "expressions") == [("thing 0", ((1, 2, 4, 4),), 0), ("thing 1", ((1, 2, 4, 4),), 0)]


def test_phrases_of_flickr_and_of_mixed_files_of_mdetr_are_expressions_and_not_whole_captions(tmp_path):
    def annotated(key: int, box: list[float], spans: list[list[int]]) -> dict[str, Any]:
        return {"iscrowd": 0, "image_id": key, "category_id": 1, "id": key, "bbox": box, "tokens_positive": spans}

    caption = "A man with two dogs."
    for source in ("flickr", "mixed"):
        images, boxes = [], []
        for number in range(12):
            (tmp_path / source / "images").mkdir(exist_ok=True, parents=True)
            (tmp_path / source / "images" / f"{number}.jpg").write_bytes(png(number))
            for place in range(2):
                key = 2 * number + place
                file = {"file_name": f"{number}.jpg", "height": 6, "width": 8, "data_source": "vg"}
                images.append({**file, "id": key, "caption": f"{caption} {place}", "dataset_name": source})
            boxes.append(annotated(2 * number, [1.0, 2.0, 3.0, 2.0], [[11, 19], [0, 5]]))
            boxes.append(annotated(2 * number, [0.0, 0.0, 2.0, 2.0], [[11, 19]]))
            boxes.append(annotated(2 * number, [0.0, 0.0, 2.0, 2.0], [[3, 900, 4], "x", [9, 2]]))
        held = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "object"}]}
        written(tmp_path / source / f"final_{source}_train.json", held)
        corpus = from_path(tmp_path / source)
        assert [(one.text, one.boxes) for one in corpus.value(5, "expressions")] == [
            ("A man", ((1, 2, 4, 4),)),
            ("two dogs", ((1, 2, 4, 4), (0, 0, 2, 2))),
        ]
        if source == "flickr":
            assert [one.text for one in corpus.value(5, "captions")] == [f"{caption} 0", f"{caption} 1"]
        else:
            assert "captions" not in corpus.columns


# Karpathy's splits


def test_karpathy_splits_are_read_and_restval_is_trained_on(tmp_path):
    corpus = from_path(SAMPLES["karpathy"](tmp_path))
    assert sizes(corpus) == {"train": 6, "validation": 3, "test": 3}
    assert [caption.text for caption in corpus.value(1, "captions")] == [f"Thing 1, said {n}." for n in range(5)]
    assert corpus.key(1) == "val2014/COCO_val2014_000000000001.jpg"


# VQA


def test_vqa_joins_questions_with_ten_answers(tmp_path):
    corpus = from_path(SAMPLES["vqa"](tmp_path))
    assert sizes(corpus) == {"train": 9, "validation": 3}
    first, second = corpus.value(10, "questions")
    assert (first.question, second.question) == ("What is thing 10, asked 0?", "What is thing 10, asked 1?")
    assert (first.answer, first.kind) == ("net", "other")
    assert first.answers == ("net",) * 6 + ("netting", "fence", "net", "mesh")


def test_vqa_by_one_file_of_questions(tmp_path):
    SAMPLES["vqa"](tmp_path)
    corpus = from_path(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json")
    assert len(corpus) == 9
    assert len(corpus.value(0, "questions")[0].answers) == 10


def test_vqa_without_answers_is_a_sentence(tmp_path):
    SAMPLES["vqa"](tmp_path)
    for file in tmp_path.glob("*annotations.json"):
        file.unlink()
    with pytest.raises(UserError, match=r"has questions, .* put v2_mscoco_train2014_annotations.json beside it"):
        from_path(tmp_path)


def test_vqa_files_of_questions_of_a_test_set_are_named(tmp_path):
    SAMPLES["vqa"](tmp_path)
    asked = {"data_subtype": "test2015", "questions": [{"image_id": 1, "question": "x?", "question_id": 2}]}
    written(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", asked)
    corpus = from_path(tmp_path)
    assert any("test2015_questions.json is not read" in note for note in corpus.notes)
    assert len(corpus) == 12


def test_gqa_questions_of_an_image_are_one_row(tmp_path):
    SAMPLES["gqa"](tmp_path)
    file = tmp_path / "train_balanced_questions.json"
    held = json.loads(file.read_text())
    held["x"] = {"imageId": "2370", "question": "Is it blue?", "answer": "yes"}
    held["y"] = {"imageId": "2370", "question": "Is it red?"}
    written(file, held)
    corpus = from_path(tmp_path)
    assert sizes(corpus) == {"train": 9, "validation": 3}
    assert [one.answer for one in corpus.value(0, "questions")] == ["no", "yes"]
    assert [(skipped.count, skipped.reason) for skipped in corpus.skipped] == [(1, "is a question without an answer")]


def test_captions_boxes_and_questions_of_an_image_are_one_row(tmp_path):
    SAMPLES["vqa"](tmp_path)
    for split, numbers in {"train2014": range(9), "val2014": range(9, 12)}.items():
        images = [{"id": number, "file_name": f"COCO_{split}_{number:012d}.jpg"} for number in numbers]
        texts = [{"id": number, "image_id": number, "caption": f"thing {number}"} for number in numbers]
        written(tmp_path / "annotations" / f"captions_{split}.json", {"images": images, "annotations": texts})
    corpus = from_path(tmp_path)
    assert sizes(corpus) == {"train": 9, "validation": 3}
    assert set(corpus.columns) == {"image", "captions", "questions"}
    assert len(corpus[10]["questions"]) == 2
    assert corpus[10]["captions"][0].text == "thing 10"


def test_a_corpus_without_a_test_split_is_tested_on_its_validation_split(tmp_path):
    corpus = from_path(SAMPLES["coco"](tmp_path))
    inputs = TaskInputs(nn.Identity(), None, Reader(corpus, Processor({}, {})))
    assert inputs.test_splits == ["validation"]
    splits = {**corpus.splits, "test": corpus.splits["train"][:2]}
    assert TaskInputs(nn.Identity(), None, Reader(corpus.with_splits(splits), Processor({}, {}))).test_splits == [
        "test"
    ]


# RefCOCO


def test_refcoco_of_seqtr(tmp_path):
    corpus = from_path(SAMPLES["refcoco"](tmp_path))
    assert sizes(corpus) == {"train": 6, "validation": 2, "test": 2, "test_b": 2}
    expressions = corpus.value(0, "expressions")
    assert [one.text for one in expressions] == ["the thing 0", "thing at 0", "the thing 0", "thing at 1"]
    assert expressions[2].boxes == ((1.0, 2.0, 4.0, 5.5),)


def test_refcoco_pickles_are_refused(tmp_path):
    for name in ("refs(unc).p", "refs(google).p"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    held = {"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    written(tmp_path / "instances.json", held)
    with pytest.raises(UserError, match=r"is a pickle, which can run code and is never read; take RefCOCO as JSON"):
        from_path(tmp_path)
    with pytest.raises(UserError, match=r"is a pickle"):
        from_path(tmp_path / "refs(unc).p")


def expressions(folder: Path, boxes: list[list[float]], name: str = "bbox", **more: Any) -> Any:
    records = []
    for number, box in enumerate(boxes):
        (folder / f"{number}.png").write_bytes(png(number))
        records.append({"image": f"{number}.png", "sentences": [f"thing {number}", "it"], name: box} | more)
    return from_path(written(folder / "refs.json", records))


@pytest.mark.parametrize(
    ("boxes", "name", "last", "said"),
    [
        ([[1, 2, 3, 4], [5, 1, 2, 3]], "bbox", (5, 1, 7, 4), "width, height, as some are smaller"),
        ([[1, 2, 3, 4], [5, 1, 8, 3]], "bbox", (5, 1, 8, 3), "right, bottom, as left and width"),
        ([[1, 1, 2, 2], [1, 2, 3, 4]], "bbox", (1, 2, 4, 6), "width, height, as COCO's"),
        ([[1, 1, 2, 2], [1, 2, 3, 4]], "bbox_xyxy", (1, 2, 3, 4), "right, bottom, as its name says"),
    ],
)
def test_boxes_of_expressions_are_what_their_values_say(boxes, name, last, said, tmp_path):
    corpus = expressions(tmp_path, boxes, name)
    assert [(one.text, one.boxes) for one in corpus.value(1, "expressions")] == [("thing 1", (last,)), ("it", (last,))]
    assert any(said in note for note in corpus.notes)


def test_sentences_of_refcoco_on_the_hub(tmp_path):
    records = []
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        sentences = [{"raw": f"Thing {number}!", "sent": f"thing {number}", "sent_id": number, "tokens": ["thing"]}]
        records.append({"image": f"{number}.png", "sentences": sentences, "bbox": [1.0, 1.0, 2.0, 2.0], "split": "val"})
    records[0]["split"] = "train"
    records[1]["split"] = "testB"
    corpus = from_path(written(tmp_path / "refs.json", records))
    assert sizes(corpus) == {"train": 1, "validation": 10, "testb": 1}
    assert corpus.value(3, "expressions")[0].text == "Thing 3!"


def test_boxes_that_are_fractions_are_a_sentence(tmp_path):
    with pytest.raises(UserError, match="fractions of the image; write them in pixels"):
        expressions(tmp_path, [[0.1, 0.2, 0.5, 0.5]])


# Flickr30k


def test_flickr30k_entities_have_captions_and_expressions(tmp_path):
    corpus = from_path(SAMPLES["flickr30k"](tmp_path))
    assert sizes(corpus) == {"train": 8, "validation": 2, "test": 2}
    example = corpus[3]
    assert [one.text for one in example["captions"]] == [
        "Two young guys with shaggy hair look at 3 .",
        "Two friends enjoy time .",
    ]
    assert [(one.text, one.boxes) for one in example["expressions"]] == [
        ("Two young guys", ((1, 0, 3, 2), (4, 0, 6, 2))),
        ("shaggy hair", ((2, 1, 3, 4),)),
        ("Two friends", ((1, 0, 3, 2), (4, 0, 6, 2))),
    ]


LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
OUTSIDE = '<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'


@pytest.mark.parametrize(
    ("content", "reason"), [(LAUGHS, "entity 'a'"), (OUTSIDE, "entity 'a'"), ("<annot", "XML"), ("", "XML")]
)
def test_annotations_in_bad_xml_are_counted(content, reason, tmp_path):
    SAMPLES["flickr30k"](tmp_path)
    (tmp_path / "Annotations" / "1000092791.xml").write_text(content)
    corpus = from_path(tmp_path)
    assert [(one.count, reason in one.example) for one in corpus.skipped] == [(1, True)]
    assert corpus.raw(1, "expressions") is None
    assert len(corpus[1]["captions"]) == 2


@pytest.mark.parametrize("name", ["results_20130124.token", "results.csv", "Flickr8k.token.txt"])
def test_files_of_flickr_captions(name, tmp_path):
    lines = []
    for number in range(12):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{1000 + number}.jpg").write_bytes(png(number))
        for place in range(5):
            text = f"Thing {number}, said {place} ."
            bars = f"{1000 + number}.jpg| {place}| {text}"
            lines.append(bars if name.endswith("csv") else f"{1000 + number}.jpg#{place}\t{text}")
    if name.endswith("csv"):
        lines = ["image_name| comment_number| comment", *lines]
        lines[21] = "1004.jpg| 0   Thing 4, said 0 ."  # as one line of the published file
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    corpus = from_path(tmp_path)
    assert len(corpus) == 12
    assert [caption.text for caption in corpus.value(4, "captions")] == [f"Thing 4, said {n} ." for n in range(5)]
    (tmp_path / name).write_text("\n".join([*lines, *["half a li"] * 40]))
    with pytest.raises(UserError, match=r"40 of 100 lines of .* are no captions of Flickr30k .*half a li"):
        from_path(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "where", "value"),
    [
        ("coco", "annotations/captions_train2017.json", ("images", 0, "id"), []),
        ("karpathy", "dataset_coco.json", ("images", 2, "sentences", 0, "raw"), 3),
        ("vqa", "v2_mscoco_train2014_annotations.json", ("annotations", 1, "multiple_choice_answer"), 3),
        ("gqa", "train_balanced_questions.json", ("00000000", "types"), 3),
        ("refcoco", "instances.json", ("train", 1), "x"),
    ],
)
def test_values_of_another_type_are_a_sentence_or_do_not_matter(name, file, where, value, tmp_path):
    SAMPLES[name](tmp_path)
    held = json.loads((tmp_path / file).read_text())
    inner = held
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    written(tmp_path / file, held)
    if name == "gqa":
        assert len(from_path(tmp_path)) == 12
    else:
        with pytest.raises(UserError, match=f"has another type than in files of the form '{name}'"):
            from_path(tmp_path)


def test_a_damaged_file_among_others_is_named_and_the_others_are_read(tmp_path):
    SAMPLES["coco"](tmp_path)
    whole = from_path(tmp_path)
    files = sorted(tmp_path.rglob("*.json"))
    half = files[0].read_text()
    files[0].with_name("half_train.json").write_text(half[: len(half) // 2])
    corpus = from_path(tmp_path)
    assert len(corpus.table) == len(whole.table)
    (damaged,) = [one for one in corpus.skipped if "cannot be read" in one.reason]
    assert damaged.count == 1
    assert damaged.example == "half_train.json"
    for file in files:
        file.write_text(file.read_text()[:200])
    with pytest.raises(UserError):
        from_path(tmp_path)
