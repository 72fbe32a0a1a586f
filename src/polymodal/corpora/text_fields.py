"""Rows of an image on a page in the 17 columns of WIT: several texts of an image, of different kinds (fields).

One row is one image at one place of one page, so that an image has several rows, in several languages. A field that a
row lacks is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora.corpus import Corpus
from polymodal.modalities import Text
from polymodal.modalities.text import UNKNOWN_LANGUAGE

IMAGE, PAGE, LANGUAGE = "image_url", "page_url", "language"
PASSES_LANG_ID = "attribution_passes_lang_id"
COLUMNS: dict[str, pa.DataType] = {  # in the order of the release (DATA.md)
    LANGUAGE: pa.string(),
    PAGE: pa.string(),
    IMAGE: pa.string(),
    "page_title": pa.string(),
    "section_title": pa.string(),
    "hierarchical_section_title": pa.string(),
    "caption_reference_description": pa.string(),
    "caption_attribution_description": pa.string(),
    "caption_alt_text_description": pa.string(),
    "mime_type": pa.string(),
    "original_height": pa.int64(),
    "original_width": pa.int64(),
    "is_main_image": pa.bool_(),
    PASSES_LANG_ID: pa.bool_(),
    "page_changed_recently": pa.bool_(),
    "context_page_description": pa.string(),
    "context_section_description": pa.string(),
}
FIELDS = {
    "reference": "caption_reference_description",
    "attribution": "caption_attribution_description",
    "alt": "caption_alt_text_description",
    "page": "context_page_description",
    "section": "context_section_description",
}
CAPTIONS = ("reference", "attribution", "alt")  # the fields that describe the image; the others are context
REFERENCE = CAPTIONS[0]


def has_fields(corpus: Corpus) -> bool:
    """Return whether a corpus has fields and names of images."""
    columns = {*corpus.table.column_names}
    return IMAGE in columns and any(FIELDS[field] in columns for field in CAPTIONS)


def fields_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a row that are there; blank ones are none."""
    return {field: text for field, column in FIELDS.items() if (text := (row.get(column) or "").strip())}


def attribution_language(row: Mapping[str, Any]) -> str:
    """Return the language of a row's attribution: that of the page if language identification confirmed it."""
    return (row.get(LANGUAGE) or UNKNOWN_LANGUAGE) if is_true(row.get(PASSES_LANG_ID)) else UNKNOWN_LANGUAGE


def is_true(value: Any) -> bool:
    """Return whether a value is true, as it is stored or as it is written in a file."""
    return value is True or str(value).strip().lower() in ("true", "1")


def stored_captions(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the captions of a row in the storage of `Text`: reference, attribution and alternative text."""
    language = row.get(LANGUAGE) or UNKNOWN_LANGUAGE
    texts = {field: text for field, text in fields_of(row).items() if field in CAPTIONS}
    of_field = {"attribution": attribution_language(row)}
    return [{"text": text, "language": of_field.get(field, language)} for field, text in texts.items()]


def field_rows(corpus: Corpus, rows: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield fields, image and language of rows as columns by name, without reading images."""
    taken = corpus.table.select(_stored(corpus)).take(pa.array(np.asarray(rows, dtype=np.int64)))
    yield from taken.to_pylist()


def field_row(corpus: Corpus, row: int) -> dict[str, Any]:
    """Return `field_rows` of one row; of a table in many chunks, a slice is much faster than `take`."""
    (record,) = corpus.table.select(_stored(corpus)).slice(int(row), 1).to_pylist()
    return dict(record)


def _stored(corpus: Corpus) -> list[str]:
    return [name for name in (LANGUAGE, IMAGE, PAGE, PASSES_LANG_ID, *FIELDS.values()) if _stores(corpus, name)]


def _stores(corpus: Corpus, name: str) -> bool:
    return name in corpus.table.column_names and not isinstance(corpus.columns.get(name), Text)
