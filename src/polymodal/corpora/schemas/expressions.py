"""Referring expressions in columns of their own: texts (`expressions`, `sentences`, ...) beside a `bbox`, as RefCOCO is
converted to JSON and Parquet."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from polymodal.corpora._types import fields_of, is_list, is_number, is_string
from polymodal.corpora.schemas._schema import SAMPLE, Found, FoundColumn, View
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Expressions, Image

rank = 2
option = ""
TEXTS = ("expressions", "expression", "referring_expressions", "referring_expression", "refs", "ref", "sentences",
         "sentence", "sents", "phrases", "phrase")  # fmt: skip
BOXES = ("bbox", "bboxes", "box", "boxes", "bbox_xywh", "bbox_xyxy", "box_xyxy")
IN_RECORDS = ("raw", "sent", "text", "expression")  # fields of a list of records that hold a text


def find(view: View) -> Found | None:
    """Find texts and boxes beside an image; whether boxes end in width and height or in right and bottom is seen from
    their values, and said."""
    image = next((name for name, kind in view.modalities.items() if isinstance(kind, Image)), None)
    texts = [name for name in view.usual(TEXTS) if _holds_texts(view.type(name))]
    boxes = [name for name in view.usual(BOXES) if _holds_boxes(view.type(name))]
    if (
        image is None
        or not texts
        or not boxes
        or any(isinstance(kind, Expressions) for kind in view.modalities.values())
    ):
        return None
    text, box = texts[0], boxes[0]
    has_size, reason = _has_size(view, image, box)
    edges = "width, height" if has_size else "right, bottom"
    note = f"Boxes of the column '{box}' are read as left, top, {edges}, {reason}."

    def convert(table: pa.Table) -> pa.Array:
        written, places = table.column(text).to_pylist(), table.column(box).to_pylist()
        stored = [_stored(_texts(one), _boxes(place), has_size) for one, place in zip(written, places, strict=True)]
        return pa.array(stored, Expressions().arrow_type)

    return Found({"expressions": FoundColumn(Expressions(), convert)}, (text, box), notes=(note,))


def _holds_texts(kind: pa.DataType) -> bool:
    if is_list(kind):
        return is_string(kind.value_type) or bool(fields_of(kind) & {*IN_RECORDS})
    return is_string(kind)


def _holds_boxes(kind: pa.DataType) -> bool:
    return is_list(kind) and (is_number(kind.value_type) or _holds_boxes(kind.value_type))


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    texts = [
        next((one[name] for name in IN_RECORDS if one.get(name)), None) if isinstance(one, dict) else one
        for one in values
    ]
    return [text.strip() for text in texts if text and text.strip()]


def _boxes(value: Any) -> list[list[float]]:
    if not value:
        return []
    return [box for box in value if box] if isinstance(value[0], list) else [value]


def _stored(texts: Sequence[str], boxes: Sequence[list[float]], has_size: bool) -> list[dict[str, Any]] | None:
    """Return the expressions of a row, which refer to all its boxes; None without texts."""
    placed = [[*box[:2], box[0] + box[2], box[1] + box[3]] if has_size and len(box) == 4 else box for box in boxes]
    placed = [[max(edge, 0.0) for edge in box] for box in placed]  # published boxes reach a little out of the image
    return [{"text": text, "boxes": placed, "clauses": 0} for text in texts] or None


def _has_size(view: View, image: str, name: str) -> tuple[bool, str]:
    """Return whether boxes end in width and height, and why. Raises UserError for boxes that are no pixels."""
    if name.endswith(("xyxy", "xywh")):
        return name.endswith("xywh"), "as its name says"
    rows = view.table.select([image, name]).slice(0, SAMPLE).to_pylist()
    boxes = [(row[image], box) for row in rows for box in _boxes(row[name]) if len(box) == 4]
    if boxes and all(max(box) <= 1 for _, box in boxes):
        raise UserError(f"The boxes of the column '{name}' are fractions of the image; write them in pixels.")
    if any(box[2] < box[0] or box[3] < box[1] for _, box in boxes):  # a missing box may be four zeros
        return True, "as some are smaller than their left or top"
    for value, box in boxes:
        with contextlib.suppress(UnreadableExample):
            width, height = view.modalities[image].decode(value).size
            if box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1:
                return False, "as left and width, or top and height, would reach out of the image"
    return True, "as COCO's are"
