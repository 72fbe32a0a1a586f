"""PDF files: each page with text is a row, its image rendered, its words with their boxes, by PDFium.

PDFium reads both, so no font map of a file is looked up in Python, where older PDF libraries load pickles.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._page_words import PageWord, scaled_word
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError, needs
from polymodal.modalities import Image, Words
from polymodal.modalities.image import encoded

description = "PDF files: a row a page with text, its image and its words with boxes"
SUFFIXES = (".pdf",)
MAX_PAGES = 200  # of a file that are read
LONG_SIDE = 1200  # pixels of a rendered page
MIN_GROUPS = 10  # files, of which some can be held out; pages of fewer are split one by one
CHUNK = 32  # pages that are converted together
SCHEMA = pa.schema({"key": pa.string(), "group": pa.string(), "image": pa.large_binary(), "words": Words().arrow_type})


def matches(data: DataFiles) -> Match:
    """Match folders whose files are mostly PDF."""
    files = data.with_suffixes(SUFFIXES)
    if not files or not _is_pdf(files[0]):
        return Match.SUFFIX if files else Match.NO
    return Match.CONTENT if 2 * len(files) > len(data.files) else Match.SUFFIX


def read(data: DataFiles) -> Rows:
    """Read all pages with text. Raises UserError where there is none, and without the package pypdfium2."""
    files = data.with_suffixes(SUFFIXES)
    if not files:
        raise UserError(f"{data.given[0]} has no PDF file.")
    table, skipped = cached_table("pdf", files, lambda: _convert(files, data.root))
    if table.num_rows == 0:
        raise UserError(
            f"No page of {data.given[0]} has text ({skipped[0].example} {skipped[0].reason}); scanned pages need OCR "
            "first: `tesseract page.png page hocr` writes hOCR, which is read."
        )
    if pc.count_distinct(table.column("group")).as_py() < MIN_GROUPS:
        table = table.drop_columns(["group"])
    return Rows(table, data.root, {"image": Image(), "words": Words()}, keys="key", skipped=skipped)


def _is_pdf(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return b"%PDF-" in stream.read(1024)
    except OSError:
        return False


def _convert(files: Sequence[Path], root: Path) -> Conversion:
    try:
        import pypdfium2  # noqa: F401
    except ImportError as error:
        raise needs("pypdfium2", "documents", "Reading PDF files") from error
    skipped: list[Skipped] = []
    return Conversion(SCHEMA, _batches(files, root, skipped), skipped)


def _batches(files: Sequence[Path], root: Path, skipped: list[Skipped]) -> Iterator[pa.RecordBatch]:
    left_out: dict[str, list[str]] = defaultdict(list)
    pages = (page for file in files for page in _pages(file, root, left_out))
    while chunk := list(itertools.islice(pages, CHUNK)):
        yield pa.RecordBatch.from_pylist(chunk, SCHEMA)
    skipped += [Skipped(len(names), reason, names[0]) for reason, names in left_out.items()]


def _pages(file: Path, root: Path, left_out: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """Yield the pages of a file. left_out: names of files and pages by the reason why they are skipped."""
    import pypdfium2

    logging.getLogger("pypdfium2").setLevel(logging.ERROR)
    name = file.resolve().relative_to(root).as_posix() if file.resolve().is_relative_to(root) else file.name
    try:
        document = pypdfium2.PdfDocument(file)
    except (pypdfium2.PdfiumError, OSError) as error:
        encrypted = "password" in str(error).lower()
        left_out["is protected by a password" if encrypted else "is damaged, or no PDF"].append(name)
        return
    try:
        count = len(document)
        if count > MAX_PAGES:
            left_out[f"is behind page {MAX_PAGES}"] += [
                f"{name}, page {number}" for number in range(MAX_PAGES + 1, count + 1)
            ]
        for number in range(min(count, MAX_PAGES)):
            key = f"{name}, page {number + 1}"
            try:
                image, words = _page(document[number])
            except (pypdfium2.PdfiumError, ValueError, ZeroDivisionError) as error:
                left_out["cannot be rendered"].append(f"{key}: {error}")
                continue
            if words:
                yield {"key": key, "group": name, "image": image, "words": words}
            else:
                left_out["has no text"].append(key)
    finally:
        document.close()


def _page(page: Any) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the image and the words of a page, as it is shown: turned and cropped."""
    bitmap = page.render(scale=LONG_SIDE / max(page.get_size()))
    words = _words(page, bitmap.get_posconv(page), (bitmap.width, bitmap.height))
    image = encoded(bitmap.to_pil().convert("RGB"), "JPEG", quality=90) if words else b""
    page.close()
    return image, words


def _words(page: Any, position: Any, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the words in the order of the file, a segment a line. position: converts points of the page to pixels."""
    import pypdfium2.raw

    text = page.get_textpage()
    words: list[dict[str, Any]] = []
    line = 0
    units: list[int] = []
    corners: list[tuple[int, int]] = []

    def end_word() -> None:
        written = _text(units)
        inside = any(0 <= x <= size[0] and 0 <= y <= size[1] for x, y in corners)
        if written and inside:
            across, down = zip(*corners, strict=True)
            box = (min(across), min(down), max(across), max(down))
            words.append(scaled_word(PageWord(written, box, segment=line), size))
        units.clear()
        corners.clear()

    for index in range(text.count_chars()):
        unit = pypdfium2.raw.FPDFText_GetUnicode(text, index)
        if chr(unit).isspace() or unit == 0:
            end_word()
            line += unit == ord("\n")
            continue
        left, bottom, right, top = text.get_charbox(index)
        units.append(unit)
        if right > left or top > bottom:  # characters that PDFium adds have no box
            corners += [position.to_bitmap(left, bottom), position.to_bitmap(right, top)]
    end_word()
    text.close()
    return words


def _text(units: Sequence[int]) -> str:
    """Return code units of UTF-16 as text, without control characters such as the hyphen at the end of a line."""
    joined = "".join(map(chr, units)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(character for character in joined if character.isprintable())
