"""Lists of records about an image: referring expressions, questions with answers, objects with boxes."""

from __future__ import annotations

from polymodal.corpora._types import fields_of, is_list
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Expressions, Interleaved, Modality, Preferences, Questions, Regions

rank = 0
option = ""
# What a column of lists of records is, by the fields that the records must have.
RECORDS: dict[tuple[str, ...], type[Modality]] = {
    ("text", "boxes"): Expressions,
    ("question", "answer"): Questions,
    ("name", "box"): Regions,
    ("question", "chosen", "rejected"): Preferences,
    ("text", "figure"): Interleaved,
}


def find(view: View) -> Found | None:
    """Find all columns of such lists."""
    columns = {}
    for name in view.free:
        if is_list(view.type(name)):
            kind = next((kind for fields, kind in RECORDS.items() if fields_of(view.type(name)) >= {*fields}), None)
            if kind is not None:
                columns[name] = FoundColumn(kind())
    return Found(columns, tuple(columns)) if columns else None
