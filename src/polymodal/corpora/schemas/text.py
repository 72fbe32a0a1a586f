"""Captions: strings, lists of strings, or lists of `{"text", "language"}` records."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_list, is_number, is_string
from polymodal.corpora.schemas._caption_columns import captions_in_several_columns
from polymodal.corpora.schemas._media import is_url
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.corpora.schemas._tabular import MISSING, categories, names_a_row
from polymodal.errors import UserError
from polymodal.modalities import Category, Cell, Conversations, Interleaved, Preferences, Questions, Text, Volume
from polymodal.modalities.text import UNKNOWN_LANGUAGE

rank = 3
option = "text"
USUAL = (
    "caption", "captions", "text", "txt", "texts", "title", "sentence", "sentences", "sentids_text", "description",
    "transcription", "transcript", "alt", "alt_text", "raw", "name",
)  # fmt: skip
LANGUAGES = ("language", "locale", "lang", "language_code")  # columns with the language of each row's captions

# Where there is one of these, other columns of strings are about the data, such as its source: only usual names count.
RECORDS = (Conversations, Interleaved, Preferences, Questions)


def find(view: View) -> Found | None:
    """Find the caption column. Raises UserError where several qualify, none has a usual name, and there is something
    that captions describe."""
    if view.named is not None:
        if not _is_text(view, view.named):
            raise view.refuse("text")
        return _found(view, view.named)
    if any(isinstance(kind, Text) for kind in view.modalities.values()):
        return None
    if several := captions_in_several_columns(view):
        return several
    usual = [name for name in view.usual(USUAL) if _is_text(view, name)]
    of_records = any(isinstance(kind, RECORDS) for kind in view.modalities.values())
    candidates = [] if of_records else [name for name in view.free if reads_as_text(view, name)]
    measured = any(isinstance(kind, Category | Cell | Volume) for kind in view.modalities.values())
    if not usual and (len(candidates) > 1 or measured):
        candidates = [name for name in candidates if categories(view, name) is None]  # they are cells of a table
    if usual or len(candidates) == 1:
        return _found(view, (usual or candidates)[0])
    if len(candidates) > 1 and view.modalities:
        raise UserError(
            f"Several columns may have captions: {', '.join(candidates)}. Name one with --text-column COLUMN."
        )
    return None


def _found(view: View, name: str) -> Found:
    """Numbers become the text that they are written as. A column of languages goes to captions that have none."""
    languages = [column for column in view.usual(LANGUAGES) if column != name and is_string(view.type(column))]
    if languages and not fields_of(view.type(name)):
        convert = partial(_with_language, name, languages[0])
        return Found({name: FoundColumn(Text(), convert)}, (name, languages[0]))
    if is_string(view.type(name)) or is_list(view.type(name)):
        return Found({name: FoundColumn(Text())}, (name,))
    return Found({name: FoundColumn(Text(), lambda table: _as_text(table.column(name)))}, (name,))


def _with_language(name: str, language: str, table: pa.Table) -> pa.Array:
    """Return captions as lists of `{"text", "language"}` records; a row without a language has the undetermined one."""
    texts = table.column(name).combine_chunks()
    of_row = pc.fill_null(pc.utf8_trim_whitespace(pc.cast(table.column(language), pa.string())), UNKNOWN_LANGUAGE)
    of_row = pc.if_else(pc.equal(of_row, ""), UNKNOWN_LANGUAGE, of_row).combine_chunks()
    if is_list(texts.type):
        counts = pc.fill_null(pc.list_value_length(texts), 0)
        of_row = of_row.take(pc.list_parent_indices(texts))
        values, valid = pc.cast(pc.list_flatten(texts), pa.string()), texts.is_valid()
    else:
        values, valid = pc.cast(texts, pa.string()), texts.is_valid()
        values, of_row, counts = values.filter(valid), of_row.filter(valid), pc.cast(valid, pa.int32())
    ends = np.cumsum(counts.to_numpy(zero_copy_only=False))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    records = pa.StructArray.from_arrays([values, of_row], ["text", "language"])
    return pa.ListArray.from_arrays(offsets, records, mask=pc.invert(valid))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(column, pa.string())


def _is_text(view: View, name: str) -> bool:
    """Return whether a column can be read as captions at all."""
    kind = view.type(name)
    if is_list(kind):
        return is_string(kind.value_type) or fields_of(kind) >= {"text"} or pa.types.is_null(kind.value_type)
    return is_string(kind) or is_number(kind) or pa.types.is_boolean(kind)


def reads_as_text(view: View, name: str) -> bool:
    """Return whether a column of any name looks like captions: strings that are no addresses, ids or numbers, and
    not the same in all rows."""
    if names_a_row(name) or name.lower() in LANGUAGES:
        return False
    values = view.texts(name)
    if fields_of(view.type(name)) >= {"text"} and is_list(view.type(name)):
        return True
    constant = len(values) > 1 and len({*values}) == 1
    return bool(values) and not constant and not all(is_url(value) or _is_number(value) for value in values)


def _is_number(value: str) -> bool:
    """Return whether a value is a number, or a missing one of a column of numbers."""
    if value.strip().lower() in MISSING:
        return True
    try:
        float(value.replace(",", "."))  # 12,5 is a number, too
    except ValueError:
        return False
    return True
