"""Files as users have them: spellings of CSV and JSON, links, folders named like splits, paths from other places."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from format_samples import png, webdataset
from polymodal.cli.data import data as data_command
from polymodal.corpora import from_path, from_table
from polymodal.corpora.data_report import report_on
from polymodal.corpora.formats import json as json_format
from polymodal.corpora.schemas._media import kind_of
from polymodal.errors import UserError
from polymodal.modalities.image import encoded


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def images(folder: Path, count: int = 12, first: int = 0, name: str = "{}.png") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = PILImage.new("RGB", (8, 6), (first + number, 3, 7))
        (folder / name.format(number)).write_bytes(encoded(image))
    return [name.format(number) for number in range(count)]


def texts(corpus, column="caption"):
    return [corpus.raw(row, column) for row in range(len(corpus))]


def pairs(folder, suffix, lines, heading="image,caption"):
    images(folder)
    file = folder / f"pairs.{suffix}"
    file.write_text("\n".join([heading, *lines]), encoding="utf-8", newline="")
    return file


# Splits and classes by folders


def test_a_class_folder_that_is_named_like_a_split_does_not_move_rows(tmp_path):
    for split, first in (("train", 0), ("test", 100)):
        for name, offset in (("bullet_train", 0), ("bus", 20)):
            images(tmp_path / split / name, 6, first + offset)
    corpus = from_path(tmp_path)
    rows = {
        split: {corpus.raw(row, "image").partition("/")[0] for row in held} for split, held in corpus.splits.items()
    }
    assert rows == {"train": {"train"}, "test": {"test"}}
    assert corpus.columns["label"].names == ("bullet_train", "bus")


def test_files_that_are_named_like_a_split_are_in_that_of_their_folder(tmp_path):
    for split, first in (("train", 0), ("val", 100)):
        for name in images(tmp_path / split, 8, first, "test_{}.png"):
            (tmp_path / split / name).with_suffix(".txt").write_text(f"{split} {name}")
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 8, "validation": 8}


def test_a_class_may_be_named_like_a_split(tmp_path):
    for place, name in enumerate(("train", "bus", "car")):
        images(tmp_path / name, 6, 20 * place)
    assert from_path(tmp_path).columns["label"].names == ("bus", "car", "train")


def test_folders_of_splits_are_no_part_of_the_class(tmp_path):
    for place, split in enumerate(("train2017", "val2017")):
        for name in ("cat", "dog"):
            images(tmp_path / "images" / split / name, 6, 50 * place + 20 * (name == "cat"))
    corpus = from_path(tmp_path)
    assert corpus.columns["label"].names == ("cat", "dog")
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 12, "validation": 12}


# Symbolic links, as in the cache of the hub


@pytest.mark.parametrize("described", [False, True])
def test_images_that_are_links_are_read(described, tmp_path):
    (tmp_path / "folder").mkdir()
    for number, name in enumerate(images(tmp_path / "blobs")):
        (tmp_path / "folder" / name).symlink_to(tmp_path / "blobs" / name)
        if not described:
            (tmp_path / "folder" / f"{number}.txt").write_text(f"thing {number}")
    if described:
        lines = "".join(f"{number}.png,thing {number}\n" for number in range(12))
        (tmp_path / "folder" / "metadata.csv").write_text("file_name,text\n" + lines)
    corpus = from_path(tmp_path / "folder")
    shown = {text: corpus.value(row, "image").getpixel((0, 0))[0] for row, text in enumerate(texts(corpus, "text"))}
    assert shown == {f"thing {number}": number for number in range(12)}


def test_folders_that_are_links_are_followed_once(tmp_path):
    for name in images(tmp_path / "elsewhere"):
        (tmp_path / "elsewhere" / name).with_suffix(".txt").write_text(f"about {name}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    corpus = from_path(tmp_path / "data")
    assert len(corpus) == 12
    assert corpus.value(0, "image").size == (8, 6)


def test_splits_of_folders_hold_for_files_that_are_links(tmp_path):
    (tmp_path / "blobs").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        table = pa.table({"caption": [f"{split} number {number}" for number in range(9)]})
        pq.write_table(table, tmp_path / "blobs" / f"a{len(split)}")
        (tmp_path / "data" / split / "0000.parquet").symlink_to(tmp_path / "blobs" / f"a{len(split)}")
    assert {name: len(rows) for name, rows in from_path(tmp_path / "data").splits.items()} == {"train": 9, "test": 9}


# Metadata of folders


def test_images_without_metadata_and_metadata_without_an_image_are_counted(tmp_path):
    images(tmp_path, 14)
    lines = [f"{number}.png,thing {number}" for number in range(11)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *lines, ",nothing"]))
    corpus = from_path(tmp_path)
    assert len(corpus) == 11
    assert {skipped.reason: skipped.count for skipped in corpus.skipped} == {
        "has no file_name": 1,
        "is named by no metadata.csv": 3,
    }


def test_metadata_of_splits_may_name_a_file_that_is_missing(tmp_path):
    for split in ("train", "test"):
        images(tmp_path / split, 6, 50 * (split == "test"))
        lines = [f"{number}.png,{split} {number}" for number in range(7)]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    assert {name: len(rows) for name, rows in from_path(tmp_path).splits.items()} == {"train": 7, "test": 7}


# JSON


def test_nan_is_no_caption(tmp_path):
    images(tmp_path)
    frame = pd.DataFrame({"image": [f"{n}.png" for n in range(12)], "caption": [None, *(f"t {n}" for n in range(11))]})
    records = frame.replace({None: float("nan")}).to_dict("records")
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    assert texts(from_path(tmp_path / "pairs.json"))[:2] == [None, "t 0"]


@pytest.mark.parametrize("orient", ["dict", "list", "records", "index"])
def test_json_of_pandas(orient, tmp_path):
    names = images(tmp_path)
    frame = pd.DataFrame({"image": names, "caption": [f"thing {number}" for number in range(12)]})
    (tmp_path / "pairs.json").write_text(json.dumps(frame.to_dict(orient), default=str))
    corpus = from_path(tmp_path / "pairs.json")
    assert texts(corpus) == [f"thing {number}" for number in range(12)]
    assert corpus.value(3, "image").getpixel((0, 0))[0] == 3


def test_json_of_captions_by_file_name(tmp_path):
    names = images(tmp_path)
    (tmp_path / "captions.json").write_text(json.dumps({name: f"about {name}" for name in names}))
    corpus = from_path(tmp_path / "captions.json")
    assert texts(corpus)[2] == f"about {corpus.raw(2, 'image')}"


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json"])
def test_json_under_the_other_suffix(name, tmp_path):
    records = [{"image": one, "caption": f"about {one}", "more": "x" * 70_000} for one in images(tmp_path)]
    lines = "\n".join(map(json.dumps, records))
    (tmp_path / name).write_text(json.dumps(records) if name.endswith("l") else lines)
    assert texts(from_path(tmp_path / name)) == [f"about {number}.png" for number in range(12)]


def test_a_json_file_is_loaded_once(tmp_path, monkeypatch):
    rows = [{"image": name, "caption": f"about {name}"} for name in images(tmp_path)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    loaded = []
    load = json_format.load
    monkeypatch.setattr(json_format, "load", lambda file: loaded.append(file) or load(file))
    assert texts(from_path(tmp_path / "pairs.json", format="json"))[0] == "about 0.png"
    assert len(loaded) == 1


# CSV


@pytest.mark.parametrize(
    "text",
    [
        "\n\nimage,caption\n{}",
        "sep=;\nimage;caption\n{}",
        "image, caption\n{}",
        "\n".join(('"image","caption\n"', "{}")),
    ],
)
def test_headings_of_csv(text, tmp_path):
    names = images(tmp_path)
    mark = ";" if "sep" in text else ","
    (tmp_path / "pairs.csv").write_text(text.format("\n".join(f"{name}{mark}about {name}" for name in names)))
    corpus = from_path(tmp_path / "pairs.csv")
    assert corpus.table.column_names == ["image", "caption"]
    assert texts(corpus) == [f"about {name}" for name in names]


def test_blanks_after_the_delimiters_of_csv_are_no_part_of_values(tmp_path):
    lines = [f"{number}.png, thing {number}, {'cat' if number % 2 else 'dog'}" for number in range(12)]
    corpus = from_path(pairs(tmp_path, "csv", [*lines, "0.png, , cat"], "image, caption, label"))
    assert corpus.columns["label"].names == ("cat", "dog")
    assert texts(corpus)[:2] + texts(corpus)[-1:] == ["thing 0", "thing 1", None]


def test_csv_with_the_line_ends_of_old_macs(tmp_path):
    images(tmp_path)
    (tmp_path / "pairs.csv").write_bytes(b"image,caption\r" + b"\r".join(b"%d.png,t %d" % (n, n) for n in range(12)))
    assert texts(from_path(tmp_path / "pairs.csv")) == [f"t {number}" for number in range(12)]


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_lines_in_a_quotation_that_is_not_closed_are_counted(suffix, mark, tmp_path):
    lines = [f"{number % 12}.png{mark}about {number}" for number in range(60)]
    lines[5], lines[6] = f'5.png{mark}"big thing', f'6.png{mark}about 6"'
    corpus = from_path(pairs(tmp_path, suffix, lines, f"image{mark}caption"))
    assert texts(corpus) == [f"about {number}" for number in range(60) if number not in (5, 6)]
    assert [(skipped.count, "not closed" in skipped.reason) for skipped in corpus.skipped] == [(2, True)]


def test_a_quotation_that_ends_nowhere_is_a_sentence(tmp_path):
    lines = [f"{number % 12}.png,about {number}" for number in range(60)]
    lines[5] = '5.png,"big thing'
    with pytest.raises(UserError, match="quotation mark that is not closed"):
        from_path(pairs(tmp_path, "csv", lines))


def test_captions_of_several_lines_are_kept(tmp_path):
    lines = [f'{number}.png,"about {number},\nand a dog, black"' for number in range(12)]
    corpus = from_path(pairs(tmp_path, "csv", lines))
    assert texts(corpus) == [f"about {number},\nand a dog, black" for number in range(12)]
    assert not corpus.skipped


# Paths


def test_paths_in_a_folder_below_the_file_are_said(tmp_path):
    images(tmp_path / "set" / "photos")
    lines = [f"{number}.png,about {number}" for number in range(12)]
    (tmp_path / "set" / "pairs.csv").write_text("\n".join(["image,caption", *lines]))
    corpus = from_path(tmp_path / "set" / "pairs.csv")
    assert corpus.value(3, "image").getpixel((0, 0))[0] == 3
    assert any(note.endswith("set/photos.") for note in corpus.notes)


@pytest.mark.parametrize("lists", [False, True])
def test_paths_of_conversations_in_a_folder_below_the_file_are_said(lists, tmp_path):
    images(tmp_path / "photos")
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    name = "{}.png"
    rows = [{"image": [name.format(n)] if lists else name.format(n), "conversations": talk} for n in range(12)]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    assert any(note.endswith("photos.") for note in from_path(tmp_path / "talks.json").notes)


def test_images_of_another_data_set_beside_it_are_not_taken(tmp_path):
    images(tmp_path / "other", 5)
    (tmp_path / "set").mkdir()
    lines = [f"{number}.png,about {number}" for number in range(12)]
    (tmp_path / "set" / "pairs.csv").write_text("\n".join(["image,caption", *lines]))
    assert from_path(tmp_path / "set" / "pairs.csv").columns["image"].root == tmp_path / "set"


def test_a_folder_that_is_missing_or_not_listed_is_passed_over(tmp_path, monkeypatch):
    rows = [{"image": f"{number}.png", "caption": f"about {number}"} for number in range(12)]
    assert len(from_table(rows, root=tmp_path / "missing")) == 12

    def refuse(folder):
        raise PermissionError(os.fspath(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert len(from_table(rows, root=tmp_path)) == 12


def test_streamed_shards_of_several_folders_have_no_relative_paths(tmp_path):
    for place, name in enumerate("ab"):
        names = images(tmp_path / name, 12, 100 * place)
        table = pa.table({"image": names, "caption": [f"{name} {number}" for number in range(12)]})
        pq.write_table(table, tmp_path / name / "rows.parquet")
    assert from_path(tmp_path).value(15, "image").getpixel((0, 0))[0] == 103
    with pytest.raises(UserError, match="several folders"):
        from_path(tmp_path, stream=True)


def test_a_stream_of_few_rows_has_all_splits(tmp_path):
    pq.write_table(pa.table({"caption": [f"thing {number}" for number in range(6)]}), tmp_path / "rows.parquet")
    sizes = {name: len(rows) for name, rows in from_path(tmp_path, stream=True).splits.items()}
    assert sizes == {"train": 4, "validation": 1, "test": 1}


# Columns


def test_labels_beside_missing_ones_are_classes_though_pandas_makes_them_floats(tmp_path):
    labels = [float("nan"), *(float(number % 2) for number in range(19))]
    pd.DataFrame({"caption": [f"thing {n}" for n in range(20)], "label": labels}).to_parquet(tmp_path / "rows.parquet")
    corpus = from_path(tmp_path / "rows.parquet")
    assert corpus.label == "label"
    assert corpus.columns["label"].names == ("0", "1")
    assert texts(corpus, "label")[:3] == [None, "0", "1"]
    pd.DataFrame({"caption": ["a b", "c d"] * 5, "label": [0.5, 1.0] * 5}).to_parquet(tmp_path / "measured.parquet")
    assert from_path(tmp_path / "measured.parquet").label is None


def test_a_value_of_one_byte_is_of_no_kind():
    assert kind_of(b"\xff") is None


@pytest.mark.parametrize(
    "name", ["csv", "parquet", "webdataset", "imagefolder", "audiofolder", "saved_corpus", "cord", "graph"]
)
def test_a_format_that_the_files_are_not_in_is_a_sentence(name, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"caption": "a cat"}\n')
    with pytest.raises(UserError, match=r"holds .*, and n|no folder that|has no|No page"):
        from_path(tmp_path, format=name)


def test_columns_that_say_the_same_of_all_rows_are_no_captions(tmp_path):
    table = {"image": [encoded(PILImage.new("RGB", (8, 6), (n, 3, 7))) for n in range(12)], "status": ["success"] * 12}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    assert [*from_path(tmp_path / "rows.parquet").columns] == ["image"]


def test_arrays_of_pixels_in_a_list_of_dicts_are_images():
    rows = [{"image": np.full((6, 8, 3), n, np.uint8), "caption": f"thing {n}"} for n in range(12)]
    assert from_table(rows).value(3, "image").getpixel((0, 0)) == (3, 3, 3)


def test_columns_that_differ_in_length_are_a_sentence():
    with pytest.raises(UserError, match="differ in length: image 3, caption 2"):
        from_table({"image": ["a.png"] * 3, "caption": ["a cat"] * 2})


# Files


@pytest.mark.parametrize(("name", "line"), [("rows.csv.gz", "caption\n"), ("rows.jsonl.gz", '{"caption": "a"}\n')])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"caption\nno gzip\n" * 9])
def test_damaged_gzip_is_not_blamed_on_the_cache(name, line, damage, tmp_path):
    (tmp_path / name).write_bytes(damage(gzip.compress((line * 9).encode() + os.urandom(4000).hex().encode())))
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        from_path(tmp_path / name)


@pytest.mark.parametrize("name", ["wids.json", "dataset-wids.json", "sizes.json"])
def test_lists_of_shards_beside_tar_files_are_no_data(name, tmp_path):
    webdataset(tmp_path)
    (tmp_path / name).write_text('{"00000.tar": 12}')
    assert from_path(tmp_path).format == "webdataset"


def test_the_rule_of_streamed_splits_is_what_they_are_by(tmp_path):
    for split in ("train", "test"):
        table = pa.table({"caption": [f"{split} number {number}" for number in range(12)]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert report_on(from_path(tmp_path, stream=True)).rule == "the names of files or folders"


def test_a_file_that_is_named_twice_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"caption": "thing {number}"}}\n' for number in range(12)))
    monkeypatch.chdir(tmp_path)
    assert len(from_path([tmp_path / "rows.jsonl", "rows.jsonl", "."])) == 12


@pytest.mark.parametrize("suffix", ["jsonl", "tar"])
def test_half_a_character_does_not_cost_a_text(suffix, tmp_path):
    lines = [r'{"caption": "half \ud83d"}', r'{"caption": "whole \ud83d\ude00"}']
    lines += [f'{{"caption": "thing {number}"}}' for number in range(10)]
    if suffix == "jsonl":
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    else:
        with tarfile.open(tmp_path / "rows.tar", "w") as tar:
            for number, line in enumerate(lines):
                member = tarfile.TarInfo(f"{number:03d}.json")
                member.size = len(line)
                tar.addfile(member, io.BytesIO(line.encode()))
    assert texts(from_path(tmp_path))[:2] == ["half \ufffd", "whole \N{GRINNING FACE}"]
    if suffix == "tar":
        assert texts(from_path(tmp_path, stream=True))[:1] == ["half \ufffd"]


def test_data_to_evaluate_on_states_test_alone(tmp_path):
    rows = "".join(f'{{"caption": "thing {number}", "split": "test"}}\n' for number in range(12))
    (tmp_path / "rows.jsonl").write_text(rows)
    assert {name: len(held) for name, held in from_path(tmp_path).splits.items()} == {"test": 12}
    with pytest.raises(UserError, match="no rows to train on, only test"):
        data_command([str(tmp_path), "--json"])


def test_examples_of_a_column_are_different_ones(tmp_path):
    rows = [{"caption": f"thing {n}", "label": "cat" if n < 30 else "dog"} for n in range(60)]
    columns = {column.name: column for column in report_on(from_table(rows)).columns}
    assert [text.split()[0] for text in columns["label"].examples] == ["cat", "dog", "cat"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_texts_beside_images_are_read_in_the_encodings_of_editors(encoding, tmp_path):
    for name in images(tmp_path):
        (tmp_path / name).with_suffix(".txt").write_text(f"café {name}", encoding=encoding)
    assert texts(from_path(tmp_path), "text")[0] == "café 0.png"


def rows_with(folder, **columns):
    images(folder)
    lines = [",".join(value.format(number) for value in columns.values()) for number in range(12)]
    (folder / "pairs.csv").write_text("\n".join([",".join(columns), *lines]))
    return from_path(folder / "pairs.csv")


def test_numbered_captions_are_captions_of_one_image(tmp_path):
    corpus = rows_with(
        tmp_path, image="{0}.png", caption_10="ten {0}", caption_2="two {0}", caption_0="", split="train"
    )
    assert [caption.text for caption in corpus.value(3, "caption")] == ["two 3", "ten 3"]


def test_columns_of_languages_are_captions_in_these_languages(tmp_path):
    corpus = rows_with(
        tmp_path, image="{0}.png", caption="own {0}", caption_en="dog {0}", caption_de="Hund {0}", caption_id="{0}"
    )
    assert [(caption.text, caption.language) for caption in corpus.value(5, "caption")] == [
        ("own 5", "und"),
        ("dog 5", "en"),
        ("Hund 5", "de"),
    ]


def test_one_column_alone_is_no_family(tmp_path):
    corpus = rows_with(tmp_path, image="{0}.png", caption_1="about {0}", code="{0}")
    assert [caption.text for caption in corpus.value(3, "caption_1")] == ["about 3"]


def test_a_competition_with_ids_and_a_sample_submission(tmp_path):
    images(tmp_path / "train", name="id{}.jpg")
    images(tmp_path / "test", 4, 20, name="id{}.jpg")
    lines = [f"id{number},{('pug', 'boxer')[number % 2]}" for number in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,breed", *lines]))
    (tmp_path / "sample_submission.csv").write_text("\n".join(["id,boxer,pug", *(f"id{n},.5,.5" for n in range(4))]))
    corpus = from_path(tmp_path)
    assert len(corpus.table) == 12
    assert corpus.raw(3, "image") == "train/id3.jpg"
    assert corpus.value(3, "image").size == corpus.value(0, "image").size
    assert all(len(rows) for rows in corpus.splits.values())  # two captions are no two groups


def test_a_competition_whose_test_table_has_no_labels(tmp_path):
    images(tmp_path / "images", 24)
    train = [f"{number}.png,{number % 3}" for number in range(18)]
    (tmp_path / "train.csv").write_text("\n".join(["image_id,label", *train]))
    (tmp_path / "test.csv").write_text("\n".join(["image_id", *(f"{number}.png" for number in range(18, 24))]))
    corpus = from_path(tmp_path)
    assert len(corpus.table) == 18
    assert "test.csv is not read: it has no 'label', which is to be learned." in corpus.notes
    assert all(len(rows) for rows in corpus.splits.values())
    (tmp_path / "test.csv").write_text("\n".join(["image_id,label", *(f"{n}.png,1" for n in range(18, 24))]))
    assert len(from_path(tmp_path).splits["test"]) == 6


def test_files_of_a_test_set_with_the_names_of_the_training_set_are_not_taken_for_them(tmp_path):
    for folder, first in (("test_images", 100), ("train_images", 0)):
        (tmp_path / folder).mkdir()
        for n in range(12):
            (tmp_path / folder / f"{n}.png").write_bytes(png(first + n))
    (tmp_path / "train.csv").write_text("image_id,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(12)))
    corpus = from_path(tmp_path)
    expected = [PILImage.open(tmp_path / "train_images" / f"{n}.png").tobytes() for n in range(12)]
    assert [corpus.value(n, "image_id").tobytes() for n in range(12)] == expected


def test_the_folder_with_most_of_the_files_is_theirs(tmp_path):
    for folder, numbers in (("a", range(1)), ("b", range(12))):
        (tmp_path / folder).mkdir()
        for n in numbers:
            (tmp_path / folder / f"{n}.png").write_bytes(png(n))
    (tmp_path / "own.csv").write_text("image,caption\n" + "".join(f"{n}.png,thing {n}\n" for n in range(12)))
    corpus = from_path(tmp_path / "own.csv")
    assert [corpus.value(n, "image").size for n in range(12)] == [(8, 6)] * 12
