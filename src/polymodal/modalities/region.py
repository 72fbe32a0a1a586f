"""Objects in a picture: their names, boxes, and a mask that says which pixel belongs to which object."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage


class Region(NamedTuple):
    """One object. box: left, top, right, bottom in pixels of the picture."""

    name: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Regions:
    """A column of lists of `{"name", "box"}` records."""

    def decode(self, value: Any) -> list[Region]:
        return [Region(record["name"], tuple(record["box"])) for record in value]


@dataclass(frozen=True)
class Mask:
    """A column of PNG label maps: 0 is background, k the k-th region of the example."""

    def decode(self, value: bytes) -> np.ndarray:
        """uint8 array, height x width."""
        return np.asarray(PILImage.open(io.BytesIO(value)), dtype=np.uint8)
