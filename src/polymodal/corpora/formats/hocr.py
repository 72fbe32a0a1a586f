"""hOCR, as Tesseract and other OCR engines write it: HTML with `ocr_page`, `ocr_line` and `ocrx_word`, beside the page
images."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._page_words import FilePage, PageWord, page_rows
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError

description = "hOCR of Tesseract and other OCR engines, beside the page images"
SUFFIXES = (".hocr", ".html", ".htm", ".xhtml")
HEAD = 1 << 14  # bytes that are looked at
MAX_FILES = 20  # that are looked at
LINES = {"ocr_line", "ocr_header", "ocr_footer", "ocr_caption", "ocr_textfloat", "ocrx_line"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_BOX = re.compile(r"\bbbox\s+(-?[\d.]+)\s+(-?[\d.]+)\s+(-?[\d.]+)\s+(-?[\d.]+)")
_IMAGE = re.compile(r"""\bimage\s+["']?([^"';]+)["']?""")


def matches(data: DataFiles) -> Match:
    """Match by the class `ocr_page` near the beginning of a file."""
    files = data.with_suffixes(SUFFIXES)
    return Match.CONTENT if any(_is_hocr(file) for file in files[:: -(-len(files) // MAX_FILES) or 1]) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the words of all pages. Raises UserError where none has words and an image."""
    files = [file for file in data.with_suffixes(SUFFIXES) if file.suffix.lower() == ".hocr" or _is_hocr(file)]
    if not files:
        raise UserError(f"{data.given[0]} has no hOCR file: HTML with the class ocr_page.")
    return page_rows(data, "hocr", files, _pages)


def _is_hocr(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return b"ocr_page" in stream.read(HEAD)
    except OSError:
        return False


def _pages(file: Path) -> list[FilePage]:
    """Return the pages of a file. Raises ValueError for a file without one."""
    parser = _Parser()
    parser.feed(file.read_text(encoding="utf-8-sig", errors="replace"))
    parser.close()
    if not parser.pages:
        raise ValueError("it has no element of the class ocr_page")
    return parser.pages


class _Parser(HTMLParser):
    """Collects words by page and line. Nothing that a file names is opened."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pages: list[FilePage] = []
        self._open: list[str] = []
        self._line = -1
        self._word: tuple[int, tuple[float, float, float, float], list[str]] | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        classes = {*(given.get("class") or "").split()}
        title = given.get("title") or ""
        box = _box(title)
        if tag not in VOID:
            self._open.append(tag)
        if "ocr_page" in classes:
            image = _IMAGE.search(title)
            # The path is that of the machine which read the page: only its name counts.
            name = re.split(r"[/\\]", image[1].strip())[-1] if image else ""
            size = (box[2], box[3]) if box else None
            self.pages.append(FilePage([], (name,) if name else (), size))
        elif classes & LINES:
            self._line += 1
        elif "ocrx_word" in classes and box is not None:
            self._word = len(self._open), box, []

    def handle_data(self, text: str) -> None:
        if self._word is not None:
            self._word[2].append(text)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._open:
            return
        while self._open:  # also those that were left open
            depth, closed = len(self._open), self._open.pop()
            if self._word is not None and depth == self._word[0]:
                text = " ".join("".join(self._word[2]).split())
                if text and self.pages:
                    self.pages[-1].words.append(PageWord(text, self._word[1], segment=self._line))
                self._word = None
            if closed == tag:
                break


def _box(title: str) -> tuple[float, float, float, float] | None:
    box = _BOX.search(title)
    return (float(box[1]), float(box[2]), float(box[3]), float(box[4])) if box else None
