"""Files of the release of WIT beside images: columns, nulls, splits, images that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PILImage

from page_samples import CONCEPTS, released
from polymodal.corpora import from_path
from polymodal.errors import UserError


def test_the_release_is_read_with_nulls_types_and_splits_without_shared_images_and_pages(tmp_path: Path) -> None:
    folder = released(tmp_path / "whole", {"wit_v1.all-00000.tsv.gz": range(6 * CONCEPTS)})
    (folder / "images/side_0.png").unlink()
    corpus = from_path(folder)
    assert (corpus.format, len(corpus), corpus.skipped[0].count) == ("wit", 6 * CONCEPTS - 3, 3)
    first = corpus.table.slice(0, 1).to_pylist()[0]
    assert first["original_height"] == 120
    assert (first["is_main_image"], first["attribution_passes_lang_id"], first["section_title"]) == (True, True, None)
    assert [text["language"] for text in first["text"]] == ["en", "en"]
    french = next(row for row in corpus.table.to_pylist() if row["language"] == "fr")
    assert [text["language"] for text in french["text"]] == ["fr", "und"]  # its attribution is in other languages
    assert {*corpus.columns} == {"image", "text"}
    for column in ("image_url", "page_url"):
        of_splits = [{*corpus.raw_values(rows, column)} for rows in corpus.splits.values()]
        assert sum(map(len, of_splits)) == len(set().union(*of_splits))
    named = {"wit_v1.train.all-0.tsv.gz": range(40), "wit_v1.val.all-0.tsv.gz": range(40, 50),
             "wit_v1.test.all-0.tsv.gz": range(50, 60)}  # fmt: skip
    stated = from_path(released(tmp_path / "named", named))
    assert {name: len(rows) for name, rows in stated.splits.items()} == {"train": 40, "validation": 10, "test": 10}


def test_of_two_images_of_one_name_the_one_in_the_folders_of_the_url_is_taken(tmp_path: Path) -> None:
    for wiki in ("commons", "en"):
        (tmp_path / "upload.example" / wiki / "a").mkdir(parents=True)
        PILImage.new("RGB", (9, 9)).save(tmp_path / "upload.example" / wiki / "a" / "Dome.png")
    lines = [
        f"en\tp{n}\thttps://upload.example/{wiki}/a/Dome.png\ta dome {n}" for n, wiki in enumerate(("en", "commons"))
    ]
    heading = "language\tpage_url\timage_url\tcaption_reference_description"
    (tmp_path / "wit.tsv").write_text("\n".join([heading, *lines]), encoding="utf-8")
    corpus = from_path(tmp_path)
    paths = [corpus.raw(row, "image") for row in range(2)]
    assert paths == ["upload.example/en/a/Dome.png", "upload.example/commons/a/Dome.png"]


def test_rows_without_a_caption_are_left_out_and_counted(tmp_path: Path) -> None:
    heading = "language\tpage_url\timage_url\tcaption_reference_description\tcontext_page_description"
    for name in "ab":
        PILImage.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    for split, line in (("train", "en\tp\ta.png\ta dome\tabout"), ("test", "en\tq\tb.png\ta hill\tabout")):
        (tmp_path / f"wit.{split}.tsv").write_text(f"{heading}\n{line}\nen\tr\tb.png\t \tabout\n", encoding="utf-8")
    corpus = from_path(tmp_path)
    assert [(one.count, one.reason) for one in corpus.skipped] == [
        (2, "has no reference, attribution or alternative text")
    ]
    assert {split: len(rows) for split, rows in corpus.splits.items() if len(rows)} == {"train": 1, "test": 1}
    for split in ("train", "test"):
        file = tmp_path / f"wit.{split}.tsv"
        file.write_text(file.read_text().replace("a dome", " ").replace("a hill", " "), encoding="utf-8")
    with pytest.raises(UserError, match="has no caption beside an image"):
        from_path(tmp_path)


def test_files_without_a_column_or_without_images_end_in_a_sentence(tmp_path: Path) -> None:
    folder = released(tmp_path, {"wit.tsv.gz": range(6)})
    for image in (folder / "images").glob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match="no image of it is in"):
        from_path(folder)
    (folder / "bare.tsv").write_text("page_url\timage_url\tcaption_alt_text_description\na\tb.png\tc\n")
    with pytest.raises(UserError, match="has no column language"):
        from_path(folder / "bare.tsv")
