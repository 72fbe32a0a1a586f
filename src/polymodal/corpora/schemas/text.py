"""Captions: strings, lists of strings, or lists of `{"text", "language"}` records."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_list, is_number, is_string
from polymodal.corpora.schemas._media import is_url
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.errors import UserError
from polymodal.modalities import Text

rank = 3
option = "text"
USUAL = (
    "caption", "captions", "text", "txt", "texts", "title", "sentence", "sentences", "sentids_text", "description",
    "transcription", "transcript", "alt", "alt_text", "raw", "name",
)  # fmt: skip


def find(view: View) -> Found | None:
    """Find the caption column. Raises UserError where several qualify, none has a usual name, and there is something
    that captions describe."""
    if view.named is not None:
        if not _is_text(view, view.named):
            raise view.refuse("text")
        return _found(view, view.named)
    if any(isinstance(kind, Text) for kind in view.found.values()):
        return None
    usual = [name for name in view.usual(USUAL) if _is_text(view, name)]
    candidates = [name for name in view.free if _reads_as_text(view, name)]
    if usual or len(candidates) == 1:
        return _found(view, (usual or candidates)[0])
    if len(candidates) > 1 and view.found:
        raise UserError(
            f"Several columns may have captions: {', '.join(candidates)}. Name one with --text-column COLUMN."
        )
    return None


def _found(view: View, name: str) -> Found:
    """Numbers become the text that they are written as."""
    if is_string(view.type(name)) or is_list(view.type(name)):
        return Found({name: FoundColumn(Text())}, (name,))
    return Found({name: FoundColumn(Text(), lambda table: _as_text(table.column(name)))}, (name,))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(column, pa.string())


def _is_text(view: View, name: str) -> bool:
    """Return whether a column can be read as captions at all."""
    kind = view.type(name)
    if is_list(kind):
        return is_string(kind.value_type) or fields_of(kind) >= {"text"} or pa.types.is_null(kind.value_type)
    return is_string(kind) or is_number(kind) or pa.types.is_boolean(kind)


def _reads_as_text(view: View, name: str) -> bool:
    """Return whether a column of any name looks like captions: strings that are no addresses, ids or numbers."""
    if name.lower() in ("split", "id", "key", "group", "url", "license", "language") or name.startswith("__"):
        return False
    values = view.texts(name)
    if fields_of(view.type(name)) >= {"text"} and is_list(view.type(name)):
        return True
    return bool(values) and not all(is_url(value) or _is_number(value) for value in values)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
