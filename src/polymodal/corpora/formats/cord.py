"""CORD (Park et al. 2019): a JSON file for each receipt, with `valid_line`, its lines by category, beside its image.

CORD in Parquet of the hub, with the same JSON in a column `ground_truth`, is of the format `parquet`.
"""

from __future__ import annotations

from pathlib import Path

from polymodal.corpora.formats._cord_lines import receipt_words
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._json_head import SUFFIXES, first_record, json_heads
from polymodal.corpora.formats._page_words import FilePage, page_rows
from polymodal.corpora.formats.json import load
from polymodal.corpora.rows import Rows

description = "CORD: a JSON file with `valid_line` for each receipt, beside its image"


def matches(data: DataFiles) -> Match:
    """Match by the lines at the beginning of JSON files."""
    fits = ({"words", "category"} <= {*first_record(head, "valid_line")} for _, head in json_heads(data))
    return Match.CONTENT if any(fits) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the words of all receipts. Raises UserError where none has words and an image."""
    return page_rows(data, "cord", data.with_suffixes(SUFFIXES), _page)


def _page(file: Path) -> list[FilePage]:
    words, size = receipt_words(load(file))
    return [FilePage(words, size=size)]
