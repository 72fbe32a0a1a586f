"""Formats of users' data: each sample is found by exactly one format, and read right."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from PIL import Image as PILImage

from format_samples import SAMPLES
from polymodal.cli._flags import DataOptions
from polymodal.corpora import Corpus, formats, from_path, schemas
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.corpora.registry import reopen
from polymodal.errors import UserError
from polymodal.modalities import Text
from polymodal.modalities.image import encoded


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def image(number: int = 0) -> bytes:
    return encoded(PILImage.new("RGB", (8, 6), (number, 3, 7)))


def images(folder: Path, count: int = 12) -> list[str]:
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(number))
    return names


def texts(corpus: Corpus) -> list[str]:
    column = corpus.column_with(Text)
    return [corpus.value(row, column)[0].text for row in range(len(corpus))]


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_is_found_by_its_format_alone(name, tmp_path):
    path = SAMPLES[name](tmp_path)
    assert formats.best_formats(DataFiles.of([path])) == [name]
    corpus = from_path(path)
    for row in range(len(corpus)):
        assert set(corpus[row]) == {*corpus.columns}
    again = reopen(json.loads(json.dumps(dict(corpus.choices))))
    assert {split: rows.tolist() for split, rows in again.splits.items()} == {
        split: rows.tolist() for split, rows in corpus.splits.items()
    }


# CSV


def test_csv_keeps_texts_as_they_are(tmp_path):
    images(tmp_path)
    captions = [
        "null",
        "None",
        "NA",
        "007",
        "1.50",
        "True",
        "nan",
        'a "quoted" one',
        "two\nlines",
        "ü, comma",
        " x ",
        "-",
    ]
    lines = [f'{number}.png,"{text.replace(chr(34), chr(34) * 2)}"' for number, text in enumerate(captions)]
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "\n".join(lines) + "\n", encoding="utf-8")
    assert texts(from_path(tmp_path / "pairs.csv")) == captions


def test_csv_with_a_comma_too_many_is_a_sentence(tmp_path):
    images(tmp_path)
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(f"{n}.png,a cat, a dog {n}\n" for n in range(12)))
    with pytest.raises(UserError, match=r"12 of 12 lines do not fit the headings: .* 3 fields, the headings are 2"):
        from_path(tmp_path / "pairs.csv")


def test_csv_lines_that_do_not_fit_are_counted(tmp_path):
    images(tmp_path)
    lines = [f"{n % 12}.png,thing {n}\n" for n in range(30)] + ["1.png,a,b\n"]
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(lines))
    corpus = from_path(tmp_path / "pairs.csv")
    assert len(corpus) == 30
    assert [skipped.count for skipped in corpus.skipped] == [1]


def test_csv_without_headings_is_a_sentence(tmp_path):
    images(tmp_path)
    (tmp_path / "pairs.csv").write_text("0.png,a cat\n1.png,a dog\n")
    with pytest.raises(UserError, match=r"looks like data; write a line of headings above it, such as image,caption"):
        from_path(tmp_path / "pairs.csv")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_of_any_delimiter(delimiter, tmp_path):
    images(tmp_path)
    suffix = "tsv" if delimiter == "\t" else "csv"
    lines = [f"filepath{delimiter}title"] + [f"{n}.png{delimiter}thing {n}" for n in range(12)]
    (tmp_path / f"pairs.{suffix}").write_text("\n".join(lines))
    assert texts(from_path(tmp_path / f"pairs.{suffix}")) == [f"thing {n}" for n in range(12)]


def test_a_file_that_replaced_another_with_its_time_is_read_anew(tmp_path):
    images(tmp_path)
    path = tmp_path / "pairs.csv"
    path.write_text("image,caption\n" + "".join(f"{n}.png,thing {n}\n" for n in range(10)))
    state = path.stat()
    assert len(from_path(path)) == 10
    other = tmp_path / "other"
    other.write_text("image,caption\n" + "".join(f"{n}.png,thingy {n}\n" for n in range(8)))
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)
    assert len(from_path(path)) == 8


# JSON


def test_json_of_mixed_types_is_read_as_it_means(tmp_path):
    names = images(tmp_path)
    records = [{"image": name, "caption": f"thing {n}", "extra": {"a": n}} for n, name in enumerate(names)]
    records[3]["caption"], records[4]["caption"], records[5]["extra"] = 7, ["one", "two"], {"b": None}
    for file, written in {"a.json": json.dumps(records), "b.jsonl": "\n".join(map(json.dumps, records))}.items():
        (tmp_path / file).write_text(written)
        corpus = from_path(tmp_path / file)
        assert texts(corpus)[3:6] == ["7", "one", "thing 5"]
        assert [caption.text for caption in corpus.value(4, "caption")] == ["one", "two"]


def test_json_lines_that_are_none_are_counted(tmp_path):
    names = images(tmp_path)
    lines = [json.dumps({"image": name, "text": name}) for name in names] + ["{half"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus = from_path(tmp_path / "a.jsonl")
    assert (len(corpus), corpus.skipped[0].count) == (12, 1)
    (tmp_path / "b.jsonl").write_text("\n".join(lines[:2] + ["{half"] * 3))
    with pytest.raises(UserError, match=r"3 of 5 lines are no JSON records .*line 3"):
        from_path(tmp_path / "b.jsonl")


# Paths


def test_a_path_that_exists_is_never_a_pattern(tmp_path):
    for folder in ("set[1]", "set1", "st*r", "star"):
        images(tmp_path / folder)
        (tmp_path / folder / "pairs.csv").write_text(
            "image,caption\n" + "".join(f"{n}.png,{folder} {n}\n" for n in range(12))
        )
    assert texts(from_path(tmp_path / "set[1]" / "pairs.csv"))[0] == "set[1] 0"
    assert texts(from_path(tmp_path / "st*r")) == [f"st*r {n}" for n in range(12)]
    assert len(from_path(str(tmp_path / "set?" / "pairs.csv"))) == 12


def test_several_paths_and_braces_are_shards(tmp_path):
    images(tmp_path)
    for shard in range(3):
        lines = "".join(f"{n}.png,shard {shard} {n}\n" for n in range(4))
        (tmp_path / f"{shard:03d}.csv").write_text("image,caption\n" + lines)
    assert len(from_path(str(tmp_path / "{000..002}.csv"))) == 12
    assert len(from_path([tmp_path / "000.csv", tmp_path / "002.csv"])) == 8


def test_paths_are_those_of_the_folder_of_each_file(tmp_path):
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(image(100 + number))
        (tmp_path / folder / "x.csv").write_text(f"image,caption\n0.png,of {folder}\n")
    corpus = from_path([tmp_path / "a" / "x.csv", tmp_path / "b" / "x.csv"])
    assert [corpus.value(row, "image").getpixel((0, 0))[0] for row in range(2)] == [100, 101]
    assert texts(corpus) == ["of a", "of b"]


# Folders


def test_image_folder_with_texts_beside_the_images(tmp_path):
    for name in images(tmp_path / "photos" / "2024"):
        (tmp_path / "photos" / "2024" / name).with_suffix(".txt").write_text(f"about {name}\n")
    (tmp_path / "photos" / "2024" / "alone.png").write_bytes(image(99))
    (tmp_path / "photos" / ".DS_Store").write_text("x")
    (tmp_path / "photos" / "README.md").write_text("x")
    assert formats.best_formats(DataFiles.of([tmp_path / "photos"])) == ["imagefolder"]
    corpus = from_path(tmp_path / "photos")
    assert len(corpus) == 13
    assert corpus.value(0, "text")[0].text == "about 0.png"
    assert [(skipped.count, skipped.reason) for skipped in corpus.skipped] == [(1, "has no text file beside it")]


def test_class_folders(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            images(tmp_path / split / name, 12 if split == "train" else 4)
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 24, "validation": 8}
    assert corpus.label == "label"
    assert corpus.columns["label"].names == ("cat", "dog")
    assert corpus.value(0, "label") == 0
    assert any("--text-column label" in note for note in corpus.notes)
    assert texts(from_path(tmp_path, text="label"))[0] == "cat"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_folder_with_metadata(suffix, tmp_path):
    names = images(tmp_path)
    if suffix == "csv":
        (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},it is {name}\n" for name in names))
    else:
        lines = [json.dumps({"file_name": name, "text": f"it is {name}"}) for name in names]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    corpus = from_path(tmp_path)
    assert texts(corpus) == [f"it is {name}" for name in names]
    assert corpus.value(3, "image").size == (8, 6)


def test_metadata_that_leads_out_of_the_folder_is_a_sentence(tmp_path):
    images(tmp_path / "in")
    (tmp_path / "secret.png").write_bytes(image())
    (tmp_path / "in" / "metadata.csv").write_text("file_name,text\n../secret.png,x\n")
    with pytest.raises(UserError, match="outside the folder"):
        from_path(tmp_path / "in")


# Columns


def test_every_kind_of_column_that_can_be_named_has_a_flag():
    flags = {field.name.removesuffix("_column") for field in dataclasses.fields(DataOptions)}
    assert {*schemas.options()} <= flags


# What is not read


def test_what_no_format_reads_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no file or folder"):
        from_path(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds nothing"):
        from_path(tmp_path / "empty")
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(UserError, match=r"1 \.xyz, which is in no format"):
        from_path(tmp_path / "a.xyz")
    with pytest.raises(UserError, match="There is no format 'cvs'; did you mean 'csv'"):
        from_path(tmp_path / "a.xyz", format="cvs")


def test_files_of_two_formats_are_a_question(tmp_path):
    images(tmp_path)
    (tmp_path / "a.csv").write_text("image,caption\n0.png,x\n")
    (tmp_path / "b.jsonl").write_text('{"image": "0.png", "caption": "x"}\n')
    with pytest.raises(UserError, match="may be csv or json; say which with --format csv"):
        from_path(tmp_path)
    assert len(from_path(tmp_path, format="csv")) == 1
