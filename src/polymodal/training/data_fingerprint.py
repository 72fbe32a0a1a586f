"""A fingerprint of the data of a run, by which a later command sees that the user's files changed."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_binary, is_list
from polymodal.corpora.corpus import Corpus

MAX_ROWS = 100_000  # of larger tables, so many evenly spaced rows are looked at


def data_fingerprint(corpus: Corpus) -> str:
    """Return a hash of the user's rows: texts, numbers, paths and sizes of media; '' for other corpora and streams.

    The files that paths name are not opened.
    """
    if "data" not in corpus.choices or not len(corpus):
        return ""
    table = corpus.table
    rows = np.linspace(0, len(table) - 1, min(len(table), MAX_ROWS)).astype(np.int64)
    whole = hashlib.blake2b(str(len(table)).encode(), digest_size=16)
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for name in table.column_names:
        column = _without_media(table.column(name))
        values = column if len(rows) == len(table) else column.take(pa.array(rows))
        whole.update(f"\0{name}\0{values.to_pylist()}".encode(errors="surrogatepass"))
    return whole.hexdigest()


def _without_media(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column, with the lengths of its values in place of bytes."""
    if is_binary(column.type):
        return pc.binary_length(column)
    if is_list(column.type) and not (
        pa.types.is_string(column.type.value_type) or pa.types.is_primitive(column.type.value_type)
    ):
        return pc.list_value_length(column)
    return column
