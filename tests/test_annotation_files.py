"""Folders of annotation files as users have them: many files, files about the same images, images that are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from format_samples import png
from polymodal.corpora import from_path
from polymodal.corpora.formats._page_words import scaled_word
from polymodal.evaluation.benchmark import find_benchmark


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def images(folder: Path, *names: str, start: int = 0) -> None:
    for number, name in enumerate(names, start):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def captions_of(*names: str, said: str = "thing") -> dict[str, Any]:
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number, "caption": f"{said} {name}"} for number, name in enumerate(names)
        ],
    }


def texts(corpus: Any, column: str = "captions") -> dict[str, list[str]]:
    return {corpus.key(row): [one.text for one in corpus.value(row, column)] for row in range(len(corpus))}


def test_a_missing_image_is_not_replaced_by_one_of_another_folder(tmp_path):
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(5)]
    images(tmp_path, *(name for name in names if name != "a/3.png"))
    written(tmp_path / "captions.json", captions_of(*names))
    corpus = from_path(tmp_path)
    assert texts(corpus) == {name: [f"thing {name}"] for name in names if name != "a/3.png"}
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "a/3.png")]


def test_a_missing_image_is_not_replaced_by_one_of_another_split(tmp_path):
    names = [f"{number}.png" for number in range(5)]
    for split, start in (("train", 0), ("valid", 5)):
        images(tmp_path / split, *names, start=start)
        written(tmp_path / split / "_annotations.coco.json", captions_of(*names))
    (tmp_path / "train" / "3.png").unlink()
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 4, "validation": 5}
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "3.png")]


def test_a_folder_in_a_name_that_does_not_exist_does_not_matter(tmp_path):
    images(tmp_path / "pictures", *(f"{number}.png" for number in range(5)))
    written(tmp_path / "annotations" / "a.json", captions_of(*(f"train2017/{number}.png" for number in range(5))))
    assert len(from_path(tmp_path)) == 5


def test_all_of_many_annotation_files_are_read(tmp_path):
    for number in range(40):
        images(tmp_path / "images", f"{number}.png", start=number)
        written(tmp_path / "annotations" / f"scene_{number}.json", captions_of(f"{number}.png"))
    assert len(from_path(tmp_path)) == 40


def test_captions_of_an_image_in_several_files_are_joined(tmp_path):
    images(tmp_path, *(f"{number}.png" for number in range(6)))
    names = [f"{number}.png" for number in range(6)]
    written(tmp_path / "a.json", captions_of(*names))
    written(tmp_path / "b.json", captions_of(*names[:2], said="other") | {"info": {}})
    written(tmp_path / "c.json", captions_of(*names[:3]))  # repeats a.json
    found = texts(from_path(tmp_path))
    assert found["0.png"] == ["thing 0.png", "other 0.png"]
    assert found["2.png"] == ["thing 2.png"]


def test_a_file_without_a_split_among_files_with_one_is_said(tmp_path):
    for split in ("train2017", "val2017"):
        images(tmp_path / split, *(f"{split}_{number}.png" for number in range(4)), start=4 * (split == "val2017"))
        written(
            tmp_path / "annotations" / f"captions_{split}.json",
            captions_of(*(f"{split}_{number}.png" for number in range(4))),
        )
    assert not from_path(tmp_path).notes
    written(tmp_path / "annotations" / "mini.json", captions_of("train2017_0.png", said="other"))
    assert any("mini.json names no split" in note for note in from_path(tmp_path).notes)


def test_ids_of_coco_may_be_numbers_in_one_list_and_texts_in_another(tmp_path):
    images(tmp_path, *(f"{number}.png" for number in range(5)))
    held = captions_of(*(f"{number}.png" for number in range(5)))
    for one in held["images"]:
        one["id"] = str(one["id"])
    written(tmp_path / "captions.json", held)
    corpus = from_path(tmp_path)
    assert texts(corpus)["3.png"] == ["thing 3.png"]
    assert not corpus.skipped


def gqa(number: int, question: str, **more: str) -> dict[str, Any]:
    return {"imageId": str(number), "question": question, "isBalanced": True, **more}


def test_gqa_as_it_is_published(tmp_path):
    """Test sets have no answers, `train_all_questions` is a folder of shards, and repeats the balanced questions."""
    images(tmp_path / "images", *(f"{number}.jpg" for number in range(12)))
    balanced = {f"b{number}": gqa(number, f"is {number}?", answer="yes") for number in range(6)}
    written(tmp_path / "train_balanced_questions.json", balanced)
    for shard in range(2):
        more = {f"{shard}{number}": gqa(number, f"in {shard}?", answer="no") for number in range(6)}
        written(tmp_path / f"train_all_questions/train_all_questions_{shard}.json", more | balanced)
    written(tmp_path / "val_balanced_questions.json", {f"v{n}": gqa(n, "what?", answer="it") for n in range(6, 9)})
    written(tmp_path / "testdev_balanced_questions.json", {f"d{n}": gqa(n, "what?", answer="it") for n in (9, 10)})
    written(tmp_path / "test_balanced_questions.json", {"t": gqa(11, "what?")})
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 6, "validation": 3, "test": 2}
    first = corpus.rows("train")[0]
    asked = [one.question for one in corpus.value(int(first), "questions")]
    assert sorted(asked) == ["in 0?", "in 1?", "is 0?"]
    assert corpus.notes == ("test_balanced_questions.json is not read: its questions have no answers.",)


def test_flickr8k_as_it_is_published(tmp_path):
    """Captions stand there a second time as lemmas; the splits are lists of images."""
    names = [f"10{number}_ab.jpg" for number in range(10)]
    images(tmp_path / "Flicker8k_Dataset", *names)
    folder = tmp_path / "Flickr8k_text"
    written(folder / "Flickr8k.lemma.token.txt", "".join(f"{name}#0\tdog run .\n" for name in names))
    written(folder / "Flickr8k.token.txt", "".join(f"{name}#0\tDogs are running {name} .\n" for name in names))
    for split, part in (("train", names[:6]), ("dev", names[6:8]), ("test", names[8:])):
        written(folder / f"Flickr_8k.{split}Images.txt", "\n".join(part) + "\n")
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 6, "validation": 2, "test": 2}
    assert next(iter(texts(corpus).values())) == [f"Dogs are running {names[0]} ."]


def test_flickr8k_of_kaggle(tmp_path):
    names = [f"10{number}_ab.jpg" for number in range(10)]
    images(tmp_path / "Images", *names)
    lines = [f'{name},A dog , number {name} , says "{said}" .' for name in names for said in "ab"]
    lines += [f'{name},"A child, ""{name}"" ."' for name in names]
    written(tmp_path / "captions.txt", "\n".join(["image,caption", *lines]) + "\n")
    corpus = from_path(tmp_path)
    assert texts(corpus)["Images/103_ab.jpg"] == [f'A dog , number 103_ab.jpg , says "{said}" .' for said in "ab"] + [
        'A child, "103_ab.jpg" .'
    ]
    assert len(from_path(tmp_path / "captions.txt")) == 10


def test_benchmarks_score_the_test_split_that_files_state(tmp_path):
    images(tmp_path, *(f"{number}.jpg" for number in range(10)))
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    held = [
        {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": f"thing {number}"}]}
        for number, split in enumerate(splits)
    ]
    written(tmp_path / "dataset_coco.json", {"images": held, "dataset": "coco"})
    corpus = from_path(tmp_path)
    retrieval = find_benchmark("coco-retrieval")
    assert {name: len(rows) for name, rows in retrieval.on(corpus).splits.items()} == {"test": 2}
    assert {name: len(rows) for name, rows in retrieval.on(corpus, "all").splits.items()} == {"test": 10}


def test_the_benchmark_refcoco_scores_all_splits_but_train(tmp_path):
    images(tmp_path, *(f"{number}.jpg" for number in range(8)))
    record = {"bbox": [0, 0, 4, 4], "expressions": ["left one"]}
    names = ("train", "val", "testA", "testB")
    held = {name: [record | {"image": f"{2 * at + more}.jpg"} for more in (0, 1)] for at, name in enumerate(names)}
    corpus = from_path(written(tmp_path / "refcoco.json", held))
    found = find_benchmark("refcoco").on(corpus).splits
    assert {name: len(rows) for name, rows in found.items()} == {"test_validation": 2, "test_test": 2, "test_test_b": 2}


def test_the_benchmark_refcoco_knows_splits_of_a_column_in_any_case(tmp_path):
    images(tmp_path, *(f"{number}.png" for number in range(8)))
    names = ("train", "val", "testA", "testB")
    lines = [
        {"image": f"{number}.png", "sentences": ["left"], "bbox": [0, 0, 4, 4], "split": names[number % 4]}
        for number in range(8)
    ]
    corpus = from_path(written(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    found = find_benchmark("refcoco").on(corpus).splits
    assert {name: len(rows) for name, rows in found.items()} == {"test_validation": 2, "test_testa": 2, "test_testb": 2}


def test_answers_of_vqa_v2_are_not_taken_from_another_version(tmp_path):
    """VQA v1 and OK-VQA have files of the same names without `v2_`, and other ids of questions."""
    images(tmp_path / "train2014", *(f"COCO_train2014_{number:0>12}.jpg" for number in range(4)))
    for prefix, answer in (("", "old"), ("v2_", "new")):
        about = {"data_subtype": "train2014", "info": {}}
        asked = [{"image_id": n, "question_id": n, "question": f"{answer} {n}?"} for n in range(4)]
        answered = [
            {"image_id": n, "question_id": n, "answers": [{"answer": answer, "answer_id": 1}]} for n in range(4)
        ]
        written(tmp_path / f"{prefix}OpenEnded_mscoco_train2014_questions.json", about | {"questions": asked})
        written(tmp_path / f"{prefix}mscoco_train2014_annotations.json", about | {"annotations": answered})
    corpus = from_path(tmp_path)
    found = [(one.question, one.answer) for one in corpus.value(0, "questions")]
    assert found == [("old 0?", "old"), ("new 0?", "new")]


def test_images_of_lvis_are_named_by_their_address(tmp_path):
    images(tmp_path, *(f"{folder}/{number:0>12}.jpg" for folder in ("train2017", "val2017") for number in range(3)))
    address = "http://images.cocodataset.org/val2017/{:0>12}.jpg"
    held = {
        "images": [{"id": number, "coco_url": address.format(number), "width": 8, "height": 6} for number in range(3)],
        "annotations": [{"id": 1, "image_id": number, "category_id": 1, "bbox": [1, 1, 2, 2]} for number in range(3)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    corpus = from_path(written(tmp_path / "lvis_v1_val.json", held))
    assert corpus.key(2) == "val2017/000000000002.jpg"
    assert corpus.value(2, "regions") == [("cat", (1, 1, 3, 3))]


def test_pages_whose_words_and_boxes_differ_in_number_are_counted(tmp_path):
    images(tmp_path, *(f"{number}.png" for number in range(4)))
    lines = [
        {"image": f"{number}.png", "words": ["a", "b"], "bboxes": [[0, 0, 5, 5]] * (1 if number == 2 else 2)}
        for number in range(4)
    ]
    corpus = from_path(written(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "row 2")]
    assert 2 not in [row for rows in corpus.splits.values() for row in rows]


def test_words_are_read_once(tmp_path, monkeypatch):
    """Their entity types are found by the tags alone, as pages may be many."""
    from polymodal.corpora.schemas import words

    read = []
    monkeypatch.setattr(words, "scaled_word", lambda word, size: read.append(word) or scaled_word(word, size))
    images(tmp_path, *(f"{number}.png" for number in range(4)))
    lines = [
        {"image": f"{number}.png", "words": ["a"], "bboxes": [[0, 0, 5, 5]], "ner_tags": [("O", "B-KEY")[number % 2]]}
        for number in range(4)
    ]
    corpus = from_path(written(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert corpus.columns["words"].fields == ("other", "KEY")
    assert len(read) == 4


@pytest.mark.parametrize("rows", [2, 10_001])
def test_a_text_among_lists_of_texts_is_a_list_of_one(rows, tmp_path):
    """In one part of a file, and in the parts that are converted one after the other."""
    images(tmp_path, "0.png")
    lines = [{"image": "0.png", "captions": f"dog {number}"} for number in range(rows - 1)]
    lines.append({"image": "0.png", "captions": ["a cat", "it"]})
    corpus = from_path(written(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert corpus.raw(0, "captions") == ["dog 0"]
    assert corpus.raw(rows - 1, "captions") == ["a cat", "it"]
