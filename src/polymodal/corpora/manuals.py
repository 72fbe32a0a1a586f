"""GIMP's manual in six languages and Debian's handbook in 26: pages of text and figures in reading order.

The navigation of a page is left out of `document`; `html` is the page as it was found, for curation and for page
understanding, and `addresses` are those that its document's figures have there. Parts that nobody has translated stay
English. A page and its translations never straddle a split.
Figures are at most 512 px wide or high; the smallest (bullets, arrows) are left out.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from PIL import Image as PILImage

from polymodal.corpora._html import parse_html, words
from polymodal.corpora._packages import DebianPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import UnreadableExample
from polymodal.modalities import Category, Image, Interleaved, Modality, Text
from polymodal.modalities.image import encoded, to_rgb
from polymodal.modalities.text import stored_texts

GIMP = {
    "en": ("a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36", 49_612_664),
    "de": ("06d1f51828e0c68d373bbdd0d34c695e6405062143cd612407cd0fcf9531c199", 51_882_324),
    "fr": ("6f1409dc1078f6660490a399e6da0a37cb31c4224b66da400fdf2148c33e4cf6", 51_881_612),
    "ja": ("75cef98ec1bdf8d1440da8dc55c6a3dd8b5dd03944d7adc80ba727061e681436", 48_498_820),
    "ru": ("6cc1afc044beda47a616cd2627ac5941bcca7ef7beb5edde7aa3b41cc61c3edd", 49_821_464),
    "zh-cn": ("4b2c2c8c0e92dde4d278d668e0ae83fd3731ef1e717d76240ae60339b703efda", 49_619_036),
}
MANUALS = {
    language: DebianPackage(f"gimp-help-{language}", "2.10.34-2", digest, size)
    for language, (digest, size) in GIMP.items()
}
HANDBOOK = DebianPackage(
    "debian-handbook", "11.20220922", "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa", 34_758_056
)
PACKAGES = (*MANUALS.values(), HANDBOOK)
ICONS = {f"{name}.png" for name in ("note", "tip", "warning", "caution", "important", "blank")}  # beside paragraphs
SMALLEST, LARGEST = 24, 512  # pixels of a figure's shorter and longer side

about = About(
    name="manuals",
    description="6,900 pages of GIMP's manual and Debian's handbook: text and figures in reading order, 26 languages",
    license="GIMP manual: GFDL-1.2+; Debian handbook: GPL-2+ or CC-BY-SA-3.0",
    source=f"Debian: {', '.join(package.name for package in PACKAGES)}",
    modalities=("interleaved", "text", "category"),
    download_bytes=sum(package.bytes for package in PACKAGES),
    version=2,
)


def manuals() -> Corpus:
    """Open the corpus, fetching and preparing it once (336 MB).

    Raises UserError when that is not possible, such as without the package selectolax.
    """
    columns: dict[str, Modality] = {
        "document": Interleaved(),
        "title": Text(),
        "language": Category(),
        "source": Category(("gimp-help", "debian-handbook")),
    }
    further = {"html": pa.string(), "addresses": pa.list_(pa.string())}
    return open_prepared(about, columns, _rows, further=further, label="language")


def _rows(prepare: Preparation) -> Iterator[Row]:
    for package in PACKAGES:
        archive = prepare.fetch(package)
        source = "debian-handbook" if package is HANDBOOK else "gimp-help"
        root = "usr/share/doc/debian-handbook/html/" if package is HANDBOOK else "usr/share/gimp/2.0/help/"
        found = members(archive, lambda name: name.endswith((".html", ".png", ".jpg", ".jpeg", ".gif")))
        files = {
            name.removeprefix(root): data
            for name, data in prepare.track(found, f"Reading {package.name}")
            if name.startswith(root)
        }
        pages = sorted(name for name in files if name.endswith(".html"))
        figures: dict[str, bytes | None] = {}
        for page in prepare.track(pages, f"Parsing {package.name}"):
            html = files[page].decode("utf-8", errors="replace")
            title, pieces = parse_page(html)
            folder = posixpath.dirname(page)
            document: list[dict[str, Any]] = []
            addresses: list[str] = []
            for kind, text, source_path in pieces:
                if source_path is None:
                    document.append({"kind": kind, "text": text, "figure": None})
                    continue
                if posixpath.basename(source_path) in ICONS:
                    continue
                path = posixpath.normpath(posixpath.join(folder, source_path))
                if path not in figures:
                    figures[path] = _figure(files.get(path))
                if figures[path] is not None:
                    document.append({"kind": kind, "text": text, "figure": figures[path]})
                    addresses.append(source_path)
            if sum(len(piece["text"]) for piece in document) < 40:
                continue
            language = page.partition("/")[0].replace("_", "-")
            yield {
                "key": f"{source}/{page.removesuffix('.html')}",
                "split": split_by_hash(posixpath.basename(page)),
                "document": document,
                "title": stored_texts(title, language=language),
                "language": language.split("-")[0] if language not in ("zh-TW", "pt-BR") else language,
                "source": source,
                "html": html,
                "addresses": addresses,
            }


def _figure(data: bytes | None) -> bytes | None:
    """Return the image, downscaled if it is large; None if it is missing, broken, or tiny."""
    if data is None:
        return None
    try:
        image = Image().decode(data)
        if min(image.size) < SMALLEST:
            return None
        if max(image.size) <= LARGEST:
            return data
        image = to_rgb(image)
        image.thumbnail((LARGEST, LARGEST), PILImage.Resampling.LANCZOS)
        return encoded(image, "WEBP", quality=90)
    except (UnreadableExample, OSError):
        return None


HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
BLOCKS = {*HEADINGS, "p", "li", "dt", "dd", "pre", "td", "th", "figcaption", "caption"}
NAVIGATION = {"navheader", "navfooter", "toc", "docnav", "top_logo", "bottom_logo", "revhistory"}


def parse_page(html: str) -> tuple[str, list[tuple[str, str, str | None]]]:
    """Return the title, and (kind, text, path of the figure or None) of every segment in reading order."""
    tree = parse_html(html)
    title = tree.css_first("title")
    pieces: list[tuple[str, str, str | None]] = []
    if tree.body is not None:
        _walk(tree.body, pieces)
    return words(title.text()) if title is not None else "", pieces


def _walk(node: Any, pieces: list[tuple[str, str, str | None]]) -> None:
    classes = set((node.attributes.get("class") or "").split())
    if classes & NAVIGATION or node.tag in ("script", "style", "nav"):
        return
    if node.tag == "img":
        if source := node.attributes.get("src"):
            pieces.append(("figure", words(node.attributes.get("alt") or ""), source))
        return
    inner = any(child.tag in BLOCKS for child in node.traverse(include_text=False) if child.mem_id != node.mem_id)
    if node.tag in BLOCKS and not inner:
        text = node.text() if node.tag == "pre" else words(node.text())
        if text.strip():
            pieces.append((_kind(node.tag, classes), text, None))
        for image in node.css("img"):
            _walk(image, pieces)
        return
    for child in node.iter(include_text=False):
        _walk(child, pieces)


def _kind(tag: str, classes: set[str]) -> str:
    if tag in HEADINGS:
        return "heading"
    if tag in ("figcaption", "caption") or "title" in classes:
        return "caption"
    return {"pre": "code", "li": "item", "dt": "item", "td": "cell", "th": "cell"}.get(tag, "paragraph")
