"""Folders of media with JSON and other media of the same name beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from format_samples import png, wav
from polymodal.corpora import from_path
from polymodal.corpora.formats import best_formats
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.errors import UserError
from polymodal.modalities import Audio, Image, Text


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def described(folder: Path, count: int = 12, suffix: str = "png") -> Path:
    for number in range(count):
        place = folder / f"{number}.{suffix}"
        wav(place, number) if suffix == "wav" else place.write_bytes(png(number))
        record = {"caption": f"thing {number}", "label": "ab"[number % 2], "width": 8, suffix: "1.x"}
        (folder / f"{number}.json").write_text(json.dumps(record))
    return folder


def test_json_beside_images_has_captions_and_classes(tmp_path):
    corpus = from_path(described(tmp_path))
    assert (corpus.format, len(corpus.table)) == ("imagefolder", 12)
    assert corpus.label == "label"
    row = [corpus.raw(row, "image") for row in range(12)].index("10.png")
    assert corpus[row]["caption"][0].text == "thing 10"
    assert corpus.raw(row, "label") == "a"
    assert corpus.raw(row, "width") == 8
    assert corpus.notes == ()


def test_json_beside_sounds(tmp_path):
    corpus = from_path(described(tmp_path, suffix="wav"))
    assert corpus.format == "audiofolder"
    assert {type(kind) for kind in corpus.columns.values()} >= {Audio, Text}


def test_a_field_that_is_named_like_a_column_is_kept_beside_it(tmp_path):
    described(tmp_path)
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"the text {number}")
        (tmp_path / f"{number}.json").write_text(json.dumps({"text": "another", "image": "5.png"}))
    corpus = from_path(tmp_path)
    assert corpus.value(1, "text")[0].text.startswith("the text")
    assert corpus.raw(1, "json.text") == "another"
    assert corpus.raw(1, "json.image") == "5.png"


def test_json_that_is_damaged_or_missing_is_counted_and_named(tmp_path):
    described(tmp_path)
    (tmp_path / "3.json").write_text('{"caption": "thi')
    (tmp_path / "4.json").write_text("[1]")
    (tmp_path / "5.json").unlink()
    corpus = from_path(tmp_path)
    bad, without = corpus.skipped
    assert (bad.count, without.count) == (2, 1)
    assert "3.json cannot be read" in bad.example
    assert without.example.endswith("5.png")
    assert sum(corpus.raw(row, "caption") is None for row in range(12)) == 3


def test_json_beside_images_that_is_damaged_everywhere_is_a_sentence(tmp_path):
    described(tmp_path, 3)
    for number in range(3):
        (tmp_path / f"{number}.json").write_text('{"caption": "thing", "label"')
    with pytest.raises(UserError, match=r"No JSON file beside the media can be read: .*0.json cannot be read as JSON"):
        from_path(tmp_path)


def test_json_of_something_else_is_no_sidecar(tmp_path):
    described(tmp_path, 3)
    (tmp_path / "more.json").write_text(json.dumps([{"image": "1.png", "caption": "x"}]))
    assert best_formats(DataFiles.of([tmp_path])) == ["json"]
    for number in range(3):
        (tmp_path / f"{number}.json").write_text('{"shapes": []}')
    (tmp_path / "more.json").unlink()
    assert best_formats(DataFiles.of([tmp_path])) == ["json"]


def test_several_media_of_one_name_are_columns_of_a_row(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        (tmp_path / f"{number}.txt").write_text(f"thing {number}")
        if number != 7:
            wav(tmp_path / f"{number}.wav", number)
    corpus = from_path(tmp_path)
    assert corpus.format == "imagefolder"
    assert {name: type(kind) for name, kind in corpus.columns.items()} == {"image": Image, "audio": Audio, "text": Text}
    for row in range(12):
        stem = corpus.raw(row, "image").removesuffix(".png")
        assert corpus.raw(row, "text") == f"thing {stem}"
        assert corpus.raw(row, "audio") == (None if stem == "7" else f"{stem}.wav")
    assert corpus.value([*corpus.has("audio")].index(True), "audio") is not None


@pytest.mark.parametrize(("images", "sounds", "expected"), [(12, 2, "imagefolder"), (2, 12, "audiofolder")])
def test_a_few_files_of_other_media_are_no_column(images, sounds, expected, tmp_path):
    for number in range(images):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    for number in range(sounds):
        wav(tmp_path / f"{number}.wav", number)
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"thing {number}")
    corpus = from_path(tmp_path)
    assert corpus.format == expected
    assert len(corpus.columns) == 2


def test_json_named_like_the_whole_file_is_of_that_file_alone(tmp_path):
    """As gallery-dl and Google Takeout name it."""
    for n in range(12):
        for suffix in ("jpg", "png"):
            (tmp_path / f"{n}.{suffix}").write_bytes(png(n))
            (tmp_path / f"{n}.{suffix}.json").write_text(json.dumps({"title": f"{suffix} {n}"}))
    corpus = from_path(tmp_path)
    assert corpus.format == "imagefolder"
    texts = {corpus.table.column("image")[n].as_py(): corpus.value(n, "title")[0].text for n in range(24)}
    assert texts == {f"{n}.{suffix}": f"{suffix} {n}" for n in range(12) for suffix in ("jpg", "png")}
