"""Rows of WIT from pages: against pages whose content is known, and the filters one by one."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image as PILImage

from page_samples import CONCEPTS, written_pages
from polymodal.corpora import from_path
from polymodal.corpora._splits import connected_groups
from polymodal.corpora.text_fields import COLUMNS
from polymodal.curation.image_text_rows import (
    MediaPage,
    RowFilters,
    in_language,
    infrequent,
    is_media_page,
    of_frequent_languages,
    rows_of_pages,
    why_no_text,
    written_rows,
)
from polymodal.curation.page_images import parse_page
from polymodal.curation.page_sources import images_below, pages_in
from polymodal.errors import UserError

ALT = "caption_alt_text_description"


@pytest.fixture(autouse=True)
def no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polymodal.curation.image_text_rows.language_score", lambda text, language: 0.1)


def test_rows_are_those_of_the_pages_and_splits_share_no_image_and_no_page(tmp_path: Path) -> None:
    truth = written_pages(tmp_path / "pages")
    filters = RowFilters(max_pages=3 * CONCEPTS - 1, licenses=("cc", "pd"))
    result = rows_of_pages(pages_in(tmp_path / "pages"), filters, images_below(tmp_path / "pages"))

    def plain(row: dict) -> tuple:
        return tuple(row[name] for name in sorted(truth[0]))

    assert Counter(map(plain, result.rows)) == Counter(map(plain, truth))  # precision and recall of every field
    assert {(row["mime_type"], row["original_width"]) for row in result.rows} == {("image/png", 120)}
    reasons = sum((count.reasons for count in result.counts.values()), Counter())
    pages = 3 * CONCEPTS
    assert reasons == {"shown too small": pages, "too small": pages, "on too many pages": pages, "repeated": pages,
                       "alt generic": pages}  # fmt: skip
    corpus = written_rows(result, tmp_path / "rows", "pages", {})
    assert [name for name in corpus.table.column_names if name in COLUMNS] == list(COLUMNS)
    assert from_path(tmp_path / "rows").table.num_rows == len(truth)
    assert {*corpus.splits} == {"train", "validation", "test"}
    for column in ("image_url", "page_url"):
        of_splits = [{*corpus.raw_values(rows, column)} for rows in corpus.splits.values()]
        assert sum(map(len, of_splits)) == len(set().union(*of_splits))


@pytest.mark.parametrize("compared", [20_000, 2])
def test_near_duplicates_of_an_image_are_in_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    monkeypatch.setattr("polymodal.curation.image_text_rows.NEAR_DUPLICATES", compared)
    written_pages(tmp_path)
    with PILImage.open(tmp_path / "images/dome_0.png") as image:
        image.resize((180, 180)).save(tmp_path / "images/side_1.png")  # renders of one drawing
    result = rows_of_pages(pages_in(tmp_path), RowFilters(max_pages=CONCEPTS), images_below(tmp_path))
    groups = {row["image_url"]: group for row, group in zip(result.rows, result.groups, strict=True)}
    assert groups["images/dome_0.png"] == groups["images/side_1.png"] != groups["images/dome_2.png"]


def test_pages_may_use_one_address_for_several_images_and_show_one_image_large_and_small() -> None:
    def drawn(color: str) -> bytes:
        PILImage.new("RGB", (120, 120), color).save(file := io.BytesIO(), "PNG")
        return file.getvalue()

    images = {("en", "a.png"): drawn("red"), ("de", "a.png"): drawn("blue"), ("fr", "b.png"): drawn("red")}
    pages = [
        {"key": page, "html": f'<html lang="{page}"><img src="{name}" alt="a menu"><img src="{name}" width="9"></html>'}
        for page, name in images
    ]
    result = rows_of_pages(pages, RowFilters(), lambda page, address: images.get((page, address)))
    assert [row["image_url"] for row in result.rows] == ["a.png", "de/a.png", "a.png"]
    assert (result.images["a.png"], result.images["de/a.png"]) == (images["en", "a.png"], images["de", "a.png"])
    assert result.groups[0] == result.groups[2] != result.groups[1]
    assert result.counts["parse"].reasons == {"shown too small": 3}


def test_pages_are_parsed_on_daft_as_in_this_process(tmp_path: Path) -> None:
    pytest.importorskip("daft")
    written_pages(tmp_path)
    pages = [page | {"language": "en"} for page in pages_in(tmp_path)]
    one, other = (
        rows_of_pages(pages, RowFilters(max_pages=CONCEPTS), images_below(tmp_path), runner=runner)
        for runner in (None, "native")
    )
    assert (one.rows, one.counts) == (other.rows, other.counts)


def test_captions_of_wikipedia_and_docbook_are_found_and_no_part_of_the_text() -> None:
    page = parse_page(
        '<h1>T</h1><div class="thumb"><a href="/wiki/File:A.jpg"><img src="a.jpg"></a><div class="thumbcaption">one '
        '</div></div><ul><li class="gallerybox"><img src="b.jpg"><div class="gallerytext"><p>two</p></div></li></ul>'
        '<div class="figure"><p class="title"><b>three</b></p><img src="c.jpg"><img src="d.jpg"></div><p>text</p>'
    )
    assert [image.reference for image in page.images] == ["one", "two", "three", ""]
    assert (page.sections, page.description, page.images[0].link) == (["text"], "text", "/wiki/File:A.jpg")


def test_filters_count_what_they_leave_out() -> None:
    rows = [
        {"image_url": f"{n // 3}.png", "page_url": str(n % 3), "language": "en" if n < 5 else "de"} for n in range(7)
    ]
    why: Counter[str] = Counter()
    assert len(infrequent(rows, why, 2)) == 1
    assert why == {"on too many pages": 6}
    assert {row["language"] for row in of_frequent_languages(rows, why, 3)} == {"en"}
    assert why_no_text(ALT, "dome.jpg", "x/y.png", 3) == why_no_text(ALT, "y", "x/y.png", 1) == "file name"
    assert why_no_text(ALT, "Icon", "x.png", 3) == "generic"
    assert why_no_text("other", "Icon", "x.png", 3) == ""
    assert why_no_text(ALT, "12 – 34", "x.png", 3) == "too short"
    marked = MediaPage({"en": "a dome", "de": "eine Kuppel"})
    assert in_language(marked, "de-AT", 0.5) == ("eine Kuppel", True)
    assert in_language(marked, "fr", 0.5) == ("a dome eine Kuppel", False)
    assert is_media_page("w/File:A_b.jpg.html")
    assert not is_media_page("w/A.html")
    assert connected_groups(["a", "b", "b", "c"], ["1", "1", "2", None]) == ["a", "a", "a", "c"]
    with pytest.raises(UserError, match="no images"):
        rows_of_pages([{"key": "a", "html": "<p>text</p>"}], RowFilters(), lambda page, address: None)
