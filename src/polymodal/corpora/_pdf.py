"""Pages of PDFs: the image, and words with boxes, kinds and blocks."""

from __future__ import annotations

import bisect
import gzip
import io
import logging
import statistics
from collections.abc import Iterator
from typing import Any

from polymodal.corpora._layout import stored_word
from polymodal.corpora._packages import DebianPackage, members
from polymodal.corpora._prepared import Preparation, Row
from polymodal.errors import needs
from polymodal.modalities.document import OTHER
from polymodal.modalities.image import encoded

REFERENCE = {
    "en": ("9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f", 1_704_872),
    "de": ("3b0ce65fd63e75ddf8eb07ca36293425135080e690a07e06a6ac8bc8040ef0aa", 1_883_880),
    "fr": ("01424cba9bfa2e13166da22d3d692d33a22ec7d8ef935ec81fd8802746087f65", 1_859_084),
    "es": ("a59b68c96f83d3cf29a476c847aee38364764603ea62eee592791e0a843a269e", 1_844_336),
    "it": ("7894062a5e9203a57ec6cb8d6a47d5ffb58c41dc004766522f1b4d78b2a8e0c6", 1_817_192),
}
MANUALS = {  # package -> manual, language
    DebianPackage(
        "debian-policy", "4.6.2.0", "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39", 2_300_356
    ): ("debian-policy", "en"),
    DebianPackage(
        "developers-reference", "12.18", "0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e", 1_117_500
    ): ("developers-reference", "en"),
    **{
        DebianPackage(f"debian-reference-{language}", "2.100", digest, size): ("debian-reference", language)
        for language, (digest, size) in REFERENCE.items()
    },
}
DOTS = 96  # pixels an inch
MIN_WORDS = 20  # of a page that is kept
MARGIN = 0.085  # of the height at the top and bottom, where running heads stand
MONOSPACED = ("Mono", "Cursor", "Courier", "Typewriter")


def pages(prepare: Preparation) -> Iterator[tuple[str, str, int, int, Row]]:
    """Yield manual, language, page and chapter number, and the columns `image` and `words`; tables of contents are
    skipped."""
    try:
        import pdfplumber
        import pypdfium2
    except ImportError as error:
        raise needs("pdfplumber", "corpora", "Reading PDFs") from error
    for package, (manual, language) in MANUALS.items():
        endings = f"{manual}.pdf", f"{manual}.{language}.pdf", "policy.pdf.gz"
        found = members(prepare.fetch(package))
        data = next(data for name, data in found if name.endswith(endings))
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        logging.getLogger("pypdfium2").setLevel(logging.ERROR)  # it warns of every chapter with sections
        outline = pypdfium2.PdfDocument(data).get_toc(max_depth=2)
        chapters = sorted({mark.get_dest().get_index() for mark in outline if mark.level == 0})
        with pdfplumber.open(io.BytesIO(data)) as document:
            for number, page in enumerate(prepare.track(document.pages, f"Reading {package.name}")):
                chapter = bisect.bisect_right(chapters, number)
                words = read_words(page)
                if chapter and len(words) >= MIN_WORDS:
                    image = page.to_image(resolution=DOTS).original.convert("RGB")
                    yield manual, language, number, chapter, {"image": encoded(image, "WEBP"), "words": words}
                page.close()


def read_words(page: Any) -> list[Row]:
    """Return a page's words in file order, in blocks, labeled `heading`, `code`, `header` or `other`."""
    found = page.extract_words(x_tolerance_ratio=0.15, use_text_flow=True, extra_attrs=["fontname", "size"])
    if not found:
        return []
    usual = statistics.median(word["size"] for word in found)
    words, block, last, last_field = [], -1, None, ""
    for word in found:
        field = _field(word, usual, page.height)
        gap = 0.0 if last is None else word["top"] - last["bottom"]
        if last is None or field != last_field or gap > 0.55 * word["size"] or word["bottom"] < last["top"]:
            block += 1
        box = (word["x0"], word["top"], word["x1"], word["bottom"])
        words.append(stored_word(word["text"], box, (page.width, page.height), field, block))
        last, last_field = word, field
    return words


def _field(word: dict[str, Any], usual: float, height: float) -> str:
    if word["bottom"] < MARGIN * height or word["top"] > (1 - MARGIN) * height:
        return "header"
    if any(name in word["fontname"] for name in MONOSPACED):
        return "code"
    return "heading" if "Bold" in word["fontname"] and word["size"] > 1.12 * usual else OTHER
