"""Referring expressions: texts that refer to objects of an image, and the boxes of these objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.modalities.modality import write_text
from polymodal.modalities.region import checked_box, draw_boxes


class Expression(NamedTuple):
    """A referring expression.

    boxes: left, top, right, bottom in pixels, of all objects referred to, possibly none. clauses: number of attributes
    mentioned, such as name, size and location; 0 if unknown.
    """

    text: str
    boxes: tuple[tuple[float, float, float, float], ...]
    clauses: int = 0


@dataclass(frozen=True)
class Expressions:
    """Column of lists of referring expressions for the example's image."""

    @property
    def arrow_type(self) -> pa.DataType:
        boxes = pa.list_(pa.list_(pa.float32()))
        return pa.list_(pa.struct({"text": pa.string(), "boxes": boxes, "clauses": pa.int32()}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Expression]:
        """Decode expressions. Raises UnreadableExample for a box that is none."""
        return [
            Expression(
                record["text"],
                tuple(checked_box(tuple(box)) for box in record["boxes"]),
                record.get("clauses") or 0,
            )
            for record in value
        ]

    def describe(self, value: list[Expression]) -> str:
        return f"{len(value)} expressions: {'; '.join(expression.text for expression in value[:2])}"

    def plot(self, value: list[Expression], axes: Any) -> None:
        """Plot the first three expressions of a single object with its box; else the texts."""
        single = [expression for expression in value if len(expression.boxes) == 1][:3]
        if single:
            draw_boxes([(expression.text, expression.boxes[0]) for expression in single], axes)
        else:
            write_text(axes, "\n".join(expression.text for expression in value))
