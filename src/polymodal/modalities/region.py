"""Objects in an image: names, bounding boxes, and a segmentation mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.image import open_image

Box = TypeVar("Box", bound=tuple[float, ...])


def checked_box(box: Box, limit: float = math.inf) -> Box:
    """Return the box if it is left, top, right, bottom with 0 <= left <= right <= limit and alike for top and bottom.

    Raises UnreadableExample for another box, such as one of x, y, width, height.
    """
    if len(box) != 4 or not (0 <= box[0] <= box[2] <= limit and 0 <= box[1] <= box[3] <= limit):
        within = f" within 0 to {limit:g}" if limit < math.inf else ", none below 0"
        values = ", ".join(f"{edge:g}" for edge in box)
        raise UnreadableExample(f"a box is left, top, right, bottom in this order{within}, not ({values})")
    return box


class Region(NamedTuple):
    """Object with its box: left, top, right, bottom in pixels of the upright image, as annotation tools show it."""

    name: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Regions:
    """Column of lists of `{"name", "box"}` records."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"name": pa.string(), "box": pa.list_(pa.int32())}))

    def decode(self, value: Any) -> list[Region]:
        """Decode objects. Raises UnreadableExample for a box that is none."""
        return [Region(record["name"], checked_box(tuple(record["box"]))) for record in value]

    def describe(self, value: list[Region]) -> str:
        return "; ".join(f"{region.name} at {', '.join(map(str, region.box))}" for region in value)

    def plot(self, value: list[Region], axes: Any) -> None:
        draw_boxes(value, axes)


@dataclass(frozen=True)
class Mask:
    """Column of PNG segmentation masks: 0 is background, k the k-th region of the example."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: bytes) -> np.ndarray:
        """Decode a uint8 array, height x width. Raises UnreadableExample for a damaged file."""
        try:
            return np.asarray(open_image(value), dtype=np.uint8)
        except (OSError, SyntaxError) as error:
            raise UnreadableExample(f"the mask is damaged: {error}") from error

    def describe(self, value: np.ndarray) -> str:
        return f"{value.shape[1]} x {value.shape[0]} px, {int(value.max())} objects"

    def plot(self, value: np.ndarray, axes: Any) -> None:
        axes.imshow(np.ma.masked_equal(value, 0), cmap="tab10", vmin=1, vmax=10, interpolation="nearest")
        axes.set(xticks=[], yticks=[])


def draw_boxes(named: Sequence[tuple[str, Sequence[float]]], axes: Any) -> None:
    """Draw boxes with labels in a square that holds all."""
    from matplotlib.patches import Rectangle

    side = max((edge for _, box in named for edge in box), default=1)
    for index, (name, box) in enumerate(named):
        left, top, right, bottom = box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=f"C{index % 10}"))
        axes.text(left + 1, top + 1, name, fontsize=6, va="top", color=f"C{index % 10}")
    axes.set(xlim=(0, side * 1.02), ylim=(side * 1.02, 0), xticks=[], yticks=[])
    axes.set_aspect("equal")
