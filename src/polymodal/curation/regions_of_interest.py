"""Regions of interest (ROI): tight boxes of masks, connected components, a weak detector by color, regions in words.

Left and right are those of the image as it is shown, the viewer's, not the patient's: a flipped image has flipped
words, so that images with such texts are never flipped in augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as PILImage

from polymodal.constraints import NonNegativeInt, PositiveInt, UnitInterval
from polymodal.corpora.scenes import color_name, place_name

Box = tuple[int, int, int, int]
Pixels = Bool[np.ndarray, "height width"]
PLACE_GRID = 3000  # boxes are scaled to a square of this side, whose thirds are the rows and columns of places
LARGE = 1 / 3  # fraction of the image's side from which on a region is large


class RegionOfInterest(NamedTuple):
    """A named region: left, top, right, bottom (right and bottom exclusive), and its pixels."""

    name: str
    box: Box
    mask: Pixels

    @property
    def area(self) -> float:
        """Fraction of the image's pixels."""
        return float(self.mask.mean())

    @property
    def place(self) -> str:
        """The part of a 3 x 3 grid that has the center of the box, such as 'top left' or 'centre'."""
        height, width = self.mask.shape
        sides = (width, height, width, height)
        scaled = [round(PLACE_GRID * edge / side) for edge, side in zip(self.box, sides, strict=True)]
        return place_name(scaled, PLACE_GRID)

    @property
    def extent(self) -> str:
        """'large' from a third of the image's side on, else 'small'."""
        height, width = self.mask.shape
        left, top, right, bottom = self.box
        return "large" if max((right - left) / width, (bottom - top) / height) >= LARGE else "small"

    def color(self, image: UInt8[np.ndarray, "height width 3"]) -> str:
        """The name of the region's most frequent color."""
        return color_name(PILImage.fromarray(np.dstack([image, 255 * self.mask.astype(np.uint8)])))


def tight_box(mask: Pixels) -> Box | None:
    """Return the smallest box that contains every pixel of a mask; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def connected_components(mask: Any, max_regions: int = 0, min_pixels: int = 1) -> list[Pixels]:
    """Return the 4-connected components of what is not 0, in the order of their first pixels, row by row.

    max_regions: the first ones; the released script keeps 2, and fails for fewer. 0: all.
    """
    from scipy.ndimage import label

    labeled, _ = label(mask)
    sizes = np.bincount(labeled.ravel())[1:]  # a mask of every speck of a noisy image would take minutes
    numbers = np.flatnonzero(sizes >= min_pixels)[: max_regions or None] + 1
    return [labeled == number for number in numbers]


def regions_of_mask(
    mask: UInt8[np.ndarray, "height width"], names: Sequence[str], max_regions: int = 0
) -> list[RegionOfInterest]:
    """Return the regions of a mask whose value k is the k-th name; with one name, the components of all of it.

    An empty mask has no region, and a name without pixels none either.
    """
    values = [value for value in np.unique(mask).tolist() if value]
    if len(names) == 1 and len(values) <= 1:
        parts = [(names[0], part) for part in connected_components(mask, max_regions)]
    else:
        parts = [(names[k - 1] if k <= len(names) else f"region {k}", mask == k) for k in values]
    boxes = [(name, tight_box(part), part) for name, part in parts]
    return [RegionOfInterest(name, box, part) for name, box, part in boxes if box is not None][: max_regions or None]


def region_of_box(name: str, box: Sequence[float], height: int, width: int) -> RegionOfInterest | None:
    """Return the region that fills a box, as far as it is inside the image; None where nothing of it is.

    Edges between pixels are rounded outwards.
    """
    mask = np.zeros((height, width), bool)
    left, top, right, bottom = (*map(math.floor, box[:2]), *map(math.ceil, box[2:]))
    mask[top:bottom, left:right] = True
    inside = tight_box(mask)
    return None if inside is None else RegionOfInterest(name, inside, mask)


def foreground(image: UInt8[np.ndarray, "height width 3"], threshold: int = 24) -> Pixels:
    """Return the pixels of which a channel differs from the border's median color by more than a threshold."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return (np.abs(image.astype(int) - np.median(border, axis=0)) > threshold).any(axis=2)


@dataclass(frozen=True)
class ColorDetector:
    """A weak expert: color threshold and connected components, named by the usual colors of what is looked for.

    The largest component of a finding's usual color gets its name; findings that are left get the components that are
    left, the largest first. It errs where things touch, are of several colors, or look like the ground.
    """

    colors: Mapping[str, str] = field(default_factory=dict)
    """Usual color of a finding."""
    threshold: PositiveInt = 24
    """Difference from the border's color, in a channel, from 0 to 255."""
    min_area: UnitInterval = 0.003
    """Smaller components are noise: fraction of the image."""
    max_regions: NonNegativeInt = 0
    """Maximum number of components; 0: all."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"], findings: Sequence[str]) -> list[RegionOfInterest]:
        """Return the regions of the findings, in their order; those that are not detected are left out."""
        smallest = max(round(self.min_area * image.shape[0] * image.shape[1]), 1)
        parts = connected_components(foreground(image, self.threshold), self.max_regions, smallest)
        parts.sort(key=lambda part: -int(part.sum()))
        regions = [RegionOfInterest("", box, part) for part in parts if (box := tight_box(part)) is not None]
        named: dict[str, RegionOfInterest] = {}
        for finding in findings:
            usual = self.colors.get(finding)
            first = next((region for region in regions if usual and region.color(image) == usual), None)
            if first is not None:
                named[finding] = first
                regions = [region for region in regions if region is not first]
        for finding in findings:
            if finding not in named and regions:
                named[finding] = regions.pop(0)
        return [named[finding]._replace(name=finding) for finding in findings if finding in named]
