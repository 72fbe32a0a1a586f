"""Volumetric scans (3-D): float32, contrasts x depth x height x width, some contrasts possibly missing.

Stored uint8 values are in 0-255, as for images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import from_npy


class Scan(NamedTuple):
    """Decoded scan. voxels: 0 where a contrast is missing. present: mask of available contrasts."""

    voxels: Float[np.ndarray, "contrasts depth height width"]
    present: Bool[np.ndarray, " contrasts"]


@dataclass(frozen=True)
class Volume:
    """Column of scans, each contrast in NumPy's .npy format. contrasts: their names, such as T1 and T2."""

    contrasts: tuple[str, ...]

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.struct(dict.fromkeys(self.contrasts, pa.binary()))

    def decode(self, value: Mapping[str, bytes | None]) -> Scan:
        """Decode a scan. Raises UnreadableExample when it has no contrast, or their shapes differ."""
        arrays = {name: from_npy(data, 3) for name in self.contrasts if (data := value[name]) is not None}
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) != 1:
            raise UnreadableExample("the contrasts differ in shape" if shapes else "the scan has no contrast")
        voxels = np.zeros((len(self.contrasts), *shapes.pop()), np.float32)
        for index, name in enumerate(self.contrasts):
            if name in arrays:
                voxels[index] = arrays[name]
        return Scan(voxels, np.array([name in arrays for name in self.contrasts]))

    def describe(self, value: Scan) -> str:
        depth, height, width = value.voxels.shape[1:]
        available = [name for name, present in zip(self.contrasts, value.present, strict=True) if present]
        return f"{depth} x {height} x {width} voxels of {', '.join(available)}"

    def plot(self, value: Scan, axes: Any) -> None:
        """Plot the slice with the largest sum along each axis, one row per contrast."""
        size = max(value.voxels.shape[1:])
        lines = []
        for scan in value.voxels:
            fullest = [scan.sum(others).argmax() for others in ((1, 2), (0, 2), (0, 1))]
            slices = [scan.take(place, axis) for axis, place in enumerate(fullest)]
            lines.append(np.concatenate([_centerd(plane, size) for plane in slices], axis=1))
        axes.imshow(np.concatenate(lines), cmap="gray")
        axes.axis("off")


def _centerd(plane: np.ndarray, size: int) -> np.ndarray:
    top, left = ((size - side) // 2 for side in plane.shape)
    square = np.zeros((size, size), plane.dtype)
    square[top : top + plane.shape[0], left : left + plane.shape[1]] = plane
    return square[::-1]


def key_slice(
    voxels: Float[np.ndarray, "contrasts depth height width"], mask: np.ndarray, axis: int = 2
) -> tuple[Float[np.ndarray, "contrasts rows columns"], np.ndarray]:
    """Return the slice of a scan across an axis with the largest part of a mask, and the mask's slice.

    mask: depth x height x width, 0 outside; the middle slice without any. axis: 0, 1 or 2 (axial in canonical
    orientation).
    """
    others = tuple(one for one in range(3) if one != axis)
    areas = (mask > 0).sum(others)
    place = int(areas.argmax()) if areas.any() else mask.shape[axis] // 2
    return voxels.take(place, axis + 1), mask.take(place, axis)
