"""Columns of single values as numbers or as categories; columns of CSV are strings, whatever they mean."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_number, is_string
from polymodal.corpora.schemas._schema import View

MAX_LEVELS = 100  # values of a categorical column
MAX_WORDS = 6  # of a value of a categorical column
# Spellings of a missing value, in lower case.
MISSING = ("", "?", "-", "na", "n/a", "nan", "null", "none", "#n/a", "<na>")
# Columns that say which row, file or place it is, and nothing about the example.
_NO_VALUE = re.compile(
    r"(is_(train|training|val|valid|validation|test)|split|partition|subset|group|fold|url|uri|link|license|hash|md5|sha256|index|idx|key|id|uid|uuid|guid|"
    r"filename|file_name|path|timestamp|unnamed: ?\d+|)$|.*[ _.\-](id|ids|uid|uuid|key|idx|index|url|path|hash)$",
    re.IGNORECASE,
)
_CAMEL_ID = re.compile(r".*[a-z](Id|ID|Key|Url|URL|Path)$")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def names_a_row(name: str) -> bool:
    """Return whether a column has ids, addresses or splits, by its name."""
    return bool(_NO_VALUE.match(name.strip()) or _CAMEL_ID.match(name.strip())) or name.startswith("__")


def numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values as float64; null for what is no number."""
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    if not is_string(column.type):
        return pc.cast(column, pa.float64())
    plain = pc.utf8_trim_whitespace(column)
    plain = pc.if_else(pc.match_substring_regex(plain, _NUMBER), plain, pa.scalar(None, plain.type))
    return pc.cast(pc.utf8_ltrim(plain, "+"), pa.float64())


def levels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values as text, without surrounding space; null for what is missing."""
    if not is_string(column.type):
        return pc.cast(column, pa.string())
    plain = pc.utf8_trim_whitespace(column)
    missing = pc.is_in(pc.utf8_lower(plain), pa.array(MISSING, plain.type))
    return pc.cast(pc.if_else(missing, pa.scalar(None, plain.type), plain), pa.string())


def are_numbers(view: View, name: str) -> bool:
    """Return whether all values of a column that are not missing are numbers."""
    kind = view.type(name)
    if not is_string(kind):
        return is_number(kind)
    sample = pa.chunked_array([pa.array(view.sample(name), pa.string())])
    return _all_numbers(sample) and _all_numbers(view.all_rows(name))


def is_numeric(view: View, name: str) -> bool:
    """Return whether a column has numbers that are not all the same, and do not count the rows."""
    if not are_numbers(view, name):
        return False
    values = numbers(view.table.column(name))
    extremes = pc.min_max(values).as_py()
    return extremes["min"] is not None and extremes["min"] != extremes["max"] and not _counts_rows(values)


def categories(view: View, name: str) -> tuple[str, ...] | None:
    """Return the values of a categorical column, sorted: few and short ones that repeat. None for another column."""
    kind = view.type(name)
    if not (is_string(kind) or pa.types.is_boolean(kind)):
        return None
    sample = {value for value in view.sample(name) if isinstance(value, str)}
    if len(sample) > MAX_LEVELS or any(len(value.split()) > MAX_WORDS for value in sample):
        return None
    column = levels(view.all_rows(name))
    if not 2 <= pc.count_distinct(column).as_py() <= min(MAX_LEVELS, max(2, len(column) // 2)):
        return None
    values = sorted(pc.unique(column).drop_null().to_pylist())
    return None if any(len(value.split()) > MAX_WORDS for value in values) else tuple(values)


def _all_numbers(column: pa.ChunkedArray) -> bool:
    """Return whether all strings that are not missing are numbers."""
    return pc.count(levels(column)).as_py() == pc.count(numbers(column)).as_py() > 0


def _counts_rows(values: pa.ChunkedArray) -> bool:
    """Return whether the numbers count the rows: 0, 1, 2 ..."""
    if len(values) < 3 or values.null_count:
        return False
    steps = pc.min_max(pc.pairwise_diff(values.combine_chunks(), 1)).as_py()
    return steps["min"] == steps["max"] == 1
