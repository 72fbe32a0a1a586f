"""Rendered web pages: elements, XPaths and boxes agree with the page; no browser is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PILImage

from corpus_modules import module
from polymodal.corpora import pages as opened
from polymodal.errors import UserError

pages = module("pages")

PAGE = """<html><head><title>A page</title></head><body style="margin:0; background:#fff">
<div style="height:100px">One <b>two</b> three</div>
<div style="height:50px; width:200px; background:#0000ff"></div>
<p style="display:none">never seen</p><a id="mark"></a>
<div style="height:2000px">last</div>
</body></html>"""


def test_the_empty_lower_part_is_cut() -> None:
    image = PILImage.new("RGB", (40, 400), "white")
    image.paste("black", (3, 50, 9, 100))
    assert pages.cut_empty(image).size == (40, 116)
    assert pages.cut_empty(PILImage.new("RGB", (40, 400), "white")).size == (40, 400)


def test_without_a_browser_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    def refuse(*given: object) -> None:
        raise WebDriverException("cannot find Chrome binary")

    monkeypatch.setattr(webdriver, "Chrome", refuse)
    with pytest.raises(UserError, match="apt-get install chromium"), pages.browser():
        pass


@pytest.mark.corpora
def test_a_page_is_rendered_with_its_elements(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    with pages.browser() as driver:
        title, image, elements = pages.rendered(driver, tmp_path / "page.html")
    assert title == "A page"
    assert [(element["tag"], element["parent"], element["text"], element["xpath"]) for element in elements] == [
        ("body", -1, "", "/html/body"),
        ("div", 0, "One three", "/html/body/div[1]"),
        ("b", 1, "two", "/html/body/div[1]/b"),
        ("div", 0, "", "/html/body/div[2]"),
        ("div", 0, "last", "/html/body/div[3]"),
    ]
    assert elements[3]["box"] == [0, 100, 200, 150]
    assert image.getpixel((100, 125)) == (0, 0, 255)
    assert elements[4]["box"] == [0, 150, 800, 2150]


@pytest.mark.corpora
def test_pages_have_the_keys_of_the_manuals() -> None:
    from polymodal.corpora import manuals

    texts = manuals()
    known = {texts.key(row): split for split, rows in texts.splits.items() for row in rows}
    corpus = opened()
    shared = [(corpus.key(row), split) for split, rows in corpus.splits.items() for row in rows
              if corpus.key(row) in known]  # fmt: skip
    assert len(shared) > 0.9 * len(corpus)
    assert all(known[key] == split for key, split in shared)
