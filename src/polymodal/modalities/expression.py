"""Expressions that refer to objects of an image, and the boxes of these objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.modalities.modality import write_text
from polymodal.modalities.region import draw_boxes


class Expression(NamedTuple):
    """boxes: left, top, right, bottom in pixels of the image, of all objects that are meant, which may be none.

    clauses: how many things are said, such as name, size and place; 0 where it is not known.
    """

    text: str
    boxes: tuple[tuple[float, float, float, float], ...]
    clauses: int = 0


@dataclass(frozen=True)
class Expressions:
    """A column of lists of expressions about the example's image."""

    @property
    def arrow_type(self) -> pa.DataType:
        boxes = pa.list_(pa.list_(pa.float32()))
        return pa.list_(pa.struct({"text": pa.string(), "boxes": boxes, "clauses": pa.int32()}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Expression]:
        return [
            Expression(record["text"], tuple(tuple(box) for box in record["boxes"]), record.get("clauses") or 0)
            for record in value
        ]

    def describe(self, value: list[Expression]) -> str:
        return f"{len(value)} expressions: {'; '.join(one.text for one in value[:2])}"

    def plot(self, value: list[Expression], axes: Any) -> None:
        """The first three of a single object, with its box; the texts of the others."""
        single = [one for one in value if len(one.boxes) == 1][:3]
        if single:
            draw_boxes([(one.text, one.boxes[0]) for one in single], axes)
        else:
            write_text(axes, "\n".join(one.text for one in value))
