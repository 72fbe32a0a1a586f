"""Folders whose tables name files otherwise than the disk does, of other splits, or beside files of other programs."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image as PILImage

from polymodal.corpora import Corpus, from_path
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Table, Text
from polymodal.modalities.image import encoded


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def images(folder: Path, name: str = "{}.jpg", count: int = 12, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = PILImage.new("RGB", (8, 6), (first + number, 3, 7))
        (folder / name.format(number)).write_bytes(encoded(image))


def captions(file: Path, name: str, heading: str = "image,caption") -> Path:
    lines = [f"{name.format(number)},about thing {number}" for number in range(12)]
    file.write_text("\n".join([heading, *lines]), encoding="utf-8-sig")
    return file


def shown(corpus: Corpus, column: str = "image") -> list[int]:
    return [corpus.value(row, column).getpixel((0, 0))[0] for row in range(len(corpus))]


# Other spellings


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        ("sub/{}.jpg", "sub\\{}.jpg"),
        ("sub/{}.jpg", "C:\\Users\\me\\Photos\\sub\\{}.jpg"),
        ("sub/{}.jpg", "/data/upload/sub/{}.jpg"),
        ("sub/{}.jpg", "./other/sub/{}.jpg"),
        ("{}.JPG", "{}.jpg"),
        ("{}.jpeg", "{}.jpg"),
        (unicodedata.normalize("NFD", "Bäume {}.jpg"), "Bäume {}.jpg"),
    ],
)
def test_files_are_found_by_the_end_of_their_path(on_disk, written, tmp_path):
    images(tmp_path / "set" / Path(on_disk).parent, Path(on_disk).name)
    images(tmp_path / "another", Path(written.replace("\\", "/")).name, first=100)  # beside it, with the same names
    file = captions(tmp_path / "set" / "rows.csv", written)
    for path in (file, tmp_path / "set"):
        corpus = from_path(path)
        assert shown(corpus) == list(range(12))
        note = next(note for note in corpus.notes if "names files by other paths" in note)
        assert note.endswith(f"is read from {on_disk.format(0)}.")


def test_names_in_metadata_may_differ_in_capitals(tmp_path):
    images(tmp_path, "{}.jpg")
    captions(tmp_path / "metadata.csv", "{}.JPG", "file_name,text")
    corpus = from_path(tmp_path)
    assert shown(corpus) == list(range(12))
    assert not corpus.skipped
    assert corpus.notes == ("metadata.csv names 0.JPG, which is read from 0.jpg.",)


def test_of_several_files_of_a_name_that_in_the_named_folder_is_meant(tmp_path):
    images(tmp_path / "a", first=0)
    images(tmp_path / "b", first=50)
    assert shown(from_path(captions(tmp_path / "rows.csv", "D:\\x\\b\\{}.jpg"))) == list(range(50, 62))
    (tmp_path / "more").mkdir()
    images(tmp_path / "more" / "a")
    images(tmp_path / "more" / "b", first=50)
    unclear = from_path(captions(tmp_path / "more" / "rows.csv", "D:\\x\\c\\{}.jpg"))
    assert unclear.raw(0, "image") == "D:\\x\\c\\0.jpg"  # two files may be meant, and none is read


def test_masks_that_are_missing_are_not_replaced_by_images_of_their_name(tmp_path):
    images(tmp_path)
    lines = [f"{number}.jpg,{number}.png,about {number}" for number in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["image,mask,caption", *lines]))
    corpus = from_path(tmp_path)
    assert shown(corpus) == list(range(12))
    assert corpus.table.column("mask")[0].as_py() == "0.png"


@pytest.mark.parametrize("heading", ["id_code", "isic_id", "patientId", "Image Name"])
def test_ids_under_other_headings_name_images(heading, tmp_path):
    images(tmp_path / "train_images", "{}a.jpg")
    lines = [f"{number}a,{number % 3}" for number in range(12)]
    (tmp_path / "train.csv").write_text("\n".join([f"{heading},diagnosis", *lines]))
    corpus = from_path(tmp_path)
    assert (shown(corpus), corpus.label) == (list(range(12)), "diagnosis")


def test_numbers_that_are_also_names_of_images_are_no_ids(tmp_path):
    images(tmp_path / "images", "{}.jpg")
    lines = [f"thing {number},{number % 3},{number}" for number in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["caption,group_id,count", *lines]))
    assert "image" not in from_path(tmp_path).columns


def test_ids_that_differ_in_capitals_alone_name_two_images(tmp_path):
    ids = ["aB1", "Ab1", "q", "Q", "w", "zz"]
    for place, name in enumerate(ids):
        images(tmp_path / "photos", f"{name}.jpg", count=1, first=20 * place)
    lines = [f"{name},about the thing {name}" for name in ids]
    (tmp_path / "rows.csv").write_text("\n".join(["photo_id,caption", *lines]))
    assert shown(from_path(tmp_path)) == [20 * place for place in range(len(ids))]
    paths = [f"D:\\x\\{name}.jpg,about the thing {name}" for name in ids]
    (tmp_path / "rows.csv").write_text("\n".join(["image,caption", *paths]))
    assert shown(from_path(tmp_path)) == [20 * place for place in range(len(ids))]


def test_ids_of_several_images_are_not_masks_and_said(tmp_path):
    images(tmp_path / "a" / "depth_maps", first=50)
    images(tmp_path / "a" / "photos")
    (tmp_path / "a" / "rows.csv").write_text("id,breed\n" + "".join(f"{n},{n % 3}\n" for n in range(12)))
    corpus = from_path(tmp_path / "a")
    assert shown(corpus) == list(range(12))
    assert not any("Of several files" in note for note in corpus.notes)
    images(tmp_path / "a" / "right", first=50)
    corpus = from_path(tmp_path / "a")
    assert shown(corpus) == list(range(12))
    assert any("for '0', photos/0.jpg, and not right/0.jpg" in note for note in corpus.notes)


def test_images_of_another_data_set_do_not_replace_those_that_are_missing(tmp_path):
    images(tmp_path / "other", count=24, first=100)
    (tmp_path / "mine").mkdir()
    rows = "".join(f"{number}.jpg,about {number}\n" for number in range(24))
    (tmp_path / "mine" / "rows.csv").write_text("image,caption\n" + rows)
    assert shown(from_path(tmp_path / "mine")) == list(range(100, 124))  # a folder beside the tables
    (tmp_path / "mine" / "images").mkdir()
    for number in range(21, 24):  # the first ones are not there yet
        PILImage.new("RGB", (8, 6), (number, 3, 7)).save(tmp_path / "mine" / "images" / f"{number}.jpg")
    corpus = from_path(tmp_path / "mine")
    with pytest.raises(UnreadableExample):
        corpus.value(0, "image")


# Tables of one split


@pytest.mark.parametrize(
    ("heading", "line"),
    [
        ("image,caption", "{0}.jpg,about {0}"),
        ("image,caption", "t{0}.jpg,about {0}"),
        ("image_id,label", "t{0},cat"),
        ("id", "t{0}"),
    ],
)
def test_a_test_table_beside_images_of_training_is_a_sentence(heading, line, tmp_path):
    images(tmp_path / "train_images")
    file = tmp_path / "test.csv"
    file.write_text("\n".join([heading, *(line.format(number) for number in range(12))]))
    for path in (tmp_path, file):
        with pytest.raises(UserError, match=r"test.csv is of the split 'test', and all images .* train_images/0.jpg"):
            from_path(path)


@pytest.mark.parametrize(("heading", "name"), [("image,caption", "{}.jpg"), ("image_id,caption", "{}")])
def test_a_test_table_takes_the_images_of_its_folder(heading, name, tmp_path):
    images(tmp_path / "train_images")
    images(tmp_path / "test_images", first=50)
    captions(tmp_path / "test.csv", name, heading)
    assert shown(from_path(tmp_path)) == list(range(50, 62))


def test_a_test_table_whose_images_are_among_those_of_its_training_table_is_read(tmp_path):
    images(tmp_path / "train_images", count=24)
    captions(tmp_path / "test.csv", "{}.jpg")
    (tmp_path / "train.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,thing {n}\n" for n in range(12, 24)))
    assert {name: len(rows) for name, rows in from_path(tmp_path).splits.items()} == {"train": 12, "test": 12}


@pytest.mark.parametrize(
    ("heading", "values", "sizes"),
    [
        ("is_valid", ["False", "True"], {"train": 6, "validation": 6}),
        ("is_train", ["1", "0"], {"train": 6, "test": 6}),
        ("is_test", ["no", "yes"], {"train": 6, "test": 6}),
        ("is_test,is_val", ["0,0", "0,1", "1,0"], {"train": 4, "validation": 4, "test": 4}),
    ],
)
def test_flags_of_splits(heading, values, sizes, tmp_path):
    images(tmp_path)
    lines = [f"{number}.jpg,thing {number},{values[number % len(values)]}" for number in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join([f"image,caption,{heading}", *lines]))
    corpus = from_path(tmp_path)
    assert {name: len(rows) for name, rows in corpus.splits.items()} == sizes
    assert not corpus.has_modality(Table)
    assert "is_" in corpus.split_rule


# Files of other programs


def test_boxes_of_yolo_are_no_captions_of_a_folder_of_images(tmp_path):
    images(tmp_path)
    for number in range(11):
        (tmp_path / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.25 0.2\n1 0.1 0.2 0.1 0.1\n" * (number > 0))
    corpus = from_path(tmp_path, "imagefolder")
    assert not corpus.has_modality(Text)
    assert [(skipped.count, "YOLO" in skipped.reason) for skipped in corpus.skipped] == [(10, True)]


def test_files_that_are_not_read_beside_images_are_named(tmp_path):
    images(tmp_path / "images")
    (tmp_path / "metadata.xlsx").write_bytes(b"PK")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("a label")
    notes = from_path(tmp_path).notes
    assert any("1 .xlsx file such as metadata.xlsx (save the sheet as CSV in UTF-8)" in note for note in notes)
    assert any("1 .txt file such as labels/0.txt" in note for note in notes)
    with pytest.raises(UserError, match=r"save the sheet as CSV in UTF-8 to read \.xlsx files"):
        from_path(tmp_path / "metadata.xlsx")


def test_exports_of_label_studio(tmp_path):
    images(tmp_path / "upload" / "1")
    kinds = ("cat", "dog")
    rows = [{"id": n, "image": f"/data/upload/1/{n}.jpg", "choice": kinds[n % 2]} for n in range(12)]
    (tmp_path / "min.json").write_text(json.dumps(rows))
    corpus = from_path(tmp_path)
    assert shown(corpus) == list(range(12))
    assert (corpus.label, corpus.columns["choice"].names) == ("choice", kinds)
    task = {"id": 1, "annotations": [{"result": []}], "file_upload": "0.jpg", "data": {"image": "/data/upload/1/0.jpg"}}
    (tmp_path / "full.json").write_text(json.dumps([task]))
    with pytest.raises(UserError, match=r"full export of Label Studio.*JSON-MIN or CSV"):
        from_path(tmp_path / "full.json")


def test_compressed_lines_of_json_beside_images(tmp_path):
    images(tmp_path)
    with gzip.open(tmp_path / "rows.ndjson.gz", "wt") as file:
        file.writelines(json.dumps({"image": f"{n}.jpg", "caption": f"thing {n}"}) + "\n" for n in range(12))
    assert from_path(tmp_path).value(3, "caption")[0].text == "thing 3"


def test_decimal_commas_are_numbers(tmp_path):
    images(tmp_path)
    lines = [f"{n}.jpg;ein Ding {n};{'1.' * (n == 7)}{n}00,{n:02d};{n % 4},5" for n in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["bild;text;preis;note", *lines]))
    corpus = from_path(tmp_path)
    table = corpus.column_with(Table)
    assert corpus.value(7, table).numbers.tolist() == pytest.approx([1700.07, 3.5])
    assert corpus.value(7, "text")[0].text == "ein Ding 7"


def test_a_folder_around_all_classes_is_no_part_of_their_names(tmp_path):
    for place, name in enumerate(("Schöne Bäume", "alte Häuser")):
        images(tmp_path / "Mein Satz" / name, "Bild {} ä.jpg", first=20 * place)
    assert from_path(tmp_path).columns["label"].names == ("Schöne Bäume", "alte Häuser")


def test_names_that_are_in_two_folders_are_said(tmp_path):
    for folder in ("cats", "dogs", "masks"):
        images(tmp_path / folder)
    captions(tmp_path / "captions.csv", "{}.jpg")
    (note,) = [note for note in from_path(tmp_path).notes if "Relative paths" in note]
    assert "cats. There are files of these names in dogs, too, which are not taken" in note
