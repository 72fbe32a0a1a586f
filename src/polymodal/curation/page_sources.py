"""Where pages and their figures come from: folders of HTML, tables, corpora with raw pages."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UnreadableExample, UserError, missing
from polymodal.modalities import Image, Interleaved
from polymodal.modalities.image import to_rgb

PageImages = Callable[[str, str], bytes | None]
"""Maps (page key, image address) to the encoded figure; None where it is not available."""

MAX_PAGE_BYTES = 64 * 2**20
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
STATED_ENCODING = re.compile(rb"""(?i)<(?:meta|\?xml)[^>]*?\b(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""")


def pages_in(source: Path) -> Iterator[dict[str, str]]:
    """Read pages from a folder of HTML files, or a Parquet or JSON lines file with a column html and optionally url.

    Raises UserError for anything else, and where there is none.
    """
    if source.is_dir():
        suffixes = (".html", ".htm", ".xhtml")
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and not path.is_dir())
        if not files:
            raise UserError(f"{source} has no .html file.")
        for path in files:
            html = _text_of(path)
            folder = path.parent.relative_to(source).as_posix()
            yield {
                "key": path.relative_to(source).as_posix(),
                "html": html,
                "base": "" if folder == "." else f"{folder}/",
            }
        return
    if not source.is_file():
        raise missing("file or folder", source)
    yield from _of_table(source)


def _text_of(path: Path) -> str:
    """Read a page in the encoding that it states, else in UTF-8; what cannot be decoded is replaced.

    What cannot be read, such as a dangling link or a pipe, and what is too large for a page, is an empty page.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_PAGE_BYTES:
            return ""
        data = path.read_bytes()
    except OSError:
        return ""
    return data.decode(_encoding_of(data), errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _encoding_of(data: bytes) -> str:
    """Return the encoding by a byte order mark, or by what the first kilobyte states (HTML standard, 13.2.3.2)."""
    for mark, name in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return name
    stated = STATED_ENCODING.search(data[:1024])
    if stated is None:
        return "utf-8"
    try:
        codec = codecs.lookup(stated[1].decode())
    except LookupError:
        return "utf-8"
    # A page that states UTF-16 in single bytes is no UTF-16, and codecs such as hex make no text.
    return codec.name if codec._is_text_encoding and not codec.name.startswith("utf-16") else "utf-8"


def _of_table(source: Path) -> Iterator[dict[str, str]]:
    from pyarrow import dataset
    from pyarrow import json as arrow_json

    try:
        if source.suffix == ".parquet":
            batches = dataset.dataset(source).to_batches()
        else:
            batches = iter(arrow_json.read_json(source).to_batches())
        for first, batch in enumerate(batches):
            if "html" not in batch.schema.names:
                raise UserError(f"{source} has no column html; it has {', '.join(batch.schema.names)}.")
            for index, row in enumerate(batch.to_pylist()):
                key = row.get("key") or row.get("url") or f"{first}/{index}"
                yield {"key": str(key), "html": _text_in(row["html"]), "base": str(row.get("url") or "")}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{source} is neither Parquet nor JSON lines that can be read ({error}).") from error


def _text_in(value: Any) -> str:
    """Return the page of a cell, which may be bytes; a cell of another type is an empty page."""
    if isinstance(value, bytes):
        return value.decode(_encoding_of(value), errors="replace")
    return value if isinstance(value, str) else ""


def pages_of(corpus: Corpus, rows: Sequence[int] | None = None) -> Iterator[dict[str, str]]:
    """Yield the raw pages of a corpus that has them, such as `manuals`, with their splits."""
    if "html" not in corpus.table.column_names:
        raise UserError(f"The corpus '{corpus.name}' has no pages as they were found (a column html); manuals has.")
    split_of = {int(row): split for split, split_rows in corpus.splits.items() for row in split_rows}
    for row in range(len(corpus)) if rows is None else rows:
        page = {"key": corpus.key(row), "html": corpus.raw(row, "html"), "base": ""}
        yield page | ({"split": split_of[row]} if row in split_of else {})


def images_of(corpus: Corpus) -> PageImages:
    """Return a lookup of figures in a corpus of documents that stores their addresses."""
    if "addresses" not in corpus.table.column_names:
        return lambda key, address: None
    column = corpus.column_with(Interleaved)
    rows = {corpus.key(row): row for row in range(len(corpus))}

    @functools.lru_cache(maxsize=1)  # a page is asked for all of its figures, one after the other
    def of_page(key: str) -> dict[str, bytes]:
        pieces = (piece["figure"] for piece in corpus.raw(rows[key], column))
        return dict(zip(corpus.raw(rows[key], "addresses"), filter(None, pieces), strict=True))

    return lambda key, address: of_page(key).get(address)


def images_below(root: Path) -> PageImages:
    """Return a lookup of figures below a folder. Web addresses are not fetched, and no file outside is read."""
    root = root.resolve()

    def read(key: str, address: str) -> bytes | None:
        path = (root / unquote(address)).resolve()
        if "://" in address or not path.is_relative_to(root):
            return None
        with suppress(OSError, UnreadableExample):
            data = path.read_bytes()
            to_rgb(Image().decode(data))
            return data
        return None

    return read
