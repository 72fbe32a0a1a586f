"""Text-guided image transformations: an operation in words, and the image that it makes (FuseLIP, section 3.3).

Crops to a named place, rotations, factors of brightness, contrast and saturation, flips, and grayscale in both
directions. Names and ranges are those of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PILImage
from PIL import ImageEnhance, ImageOps

Family = Literal["crop", "rotate", "color", "flip", "grayscale"]
FAMILIES: tuple[Family, ...] = get_args(Family)
FAMILY_WEIGHTS: Mapping[Family, float] = {"crop": 2, "rotate": 1, "color": 1, "flip": 2, "grayscale": 1}
EVALUATED: Mapping[Family, int] = {"crop": 9, "rotate": 18, "color": 10, "flip": 4, "grayscale": 2}  # of an image
LOCATIONS = tuple(f"{row} {column}" for row in ("upper", "center", "lower") for column in ("left", "center", "right"))
ANGLES, DIRECTIONS = tuple(range(10, 100, 10)), ("clockwise", "counter-clockwise")
MIN_FACTOR, MAX_FACTOR = 0.3, 2.0
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
PLACES = {"upper": 0.0, "left": 0.0, "center": 0.5, "lower": 1.0, "right": 1.0}  # of the room that a crop leaves

Pixels = UInt8[np.ndarray, "height width 3"]


class Transformed(NamedTuple):
    """An image, an instruction, and the image that it asks for."""

    source: Pixels
    instruction: str
    target: Pixels


def crop_to(image: Pixels, location: str) -> Pixels:
    """Crop to half of the width and enlarge to the size of the image. location: such as 'upper left'."""
    height, width = image.shape[:2]
    side = max(min(width // 2, height), 1)
    row, column = location.split()
    left, top = int(PLACES[column] * (width - side)), int(PLACES[row] * (height - side))
    cropped = PILImage.fromarray(image).crop((left, top, left + side, top + side))
    return np.array(cropped.resize((width, height), PILImage.Resampling.BICUBIC))


def rotate(image: Pixels, angle: int, direction: str) -> Pixels:
    """Rotate about the center; the corners are black."""
    return np.array(PILImage.fromarray(image).rotate(-angle if direction == "clockwise" else angle))


def adjust_color(image: Pixels, factors: Mapping[str, float]) -> tuple[str, Pixels]:
    """Scale brightness, contrast and saturation in turn; returns the instruction, too."""
    adjusted = PILImage.fromarray(image)
    words = []
    for name, factor in factors.items():
        adjusted = ENHANCERS[name](adjusted).enhance(factor)
        words.append(f"{'increase' if factor > 1 else 'decrease'} {name} by factor {factor:g}")
    return " and ".join(words), np.array(adjusted)


def to_gray(image: Pixels) -> Pixels:
    """Convert to the luma of ITU-R BT.601 in three channels."""
    return np.array(ImageOps.grayscale(PILImage.fromarray(image)).convert("RGB"))


def transformations(image: Pixels, family: Family, count: int, rng: np.random.Generator) -> list[Transformed]:
    """Return at most so many operations of a family in random order, each with its source and target.

    Of flips, the way back has the flipped image as its source; of grayscale, 'colorize' has the gray one.
    """
    if family == "crop":
        chosen = [(f"crop to {location}", crop_to(image, location)) for location in rng.permutation(LOCATIONS)[:count]]
    elif family == "rotate":
        numbers = rng.permutation(len(ANGLES) * len(DIRECTIONS))[:count].tolist()
        turns = [(ANGLES[number // 2], DIRECTIONS[number % 2]) for number in numbers]
        chosen = [(f"rotate {angle} degrees {way}", rotate(image, angle, way)) for angle, way in turns]
    elif family == "color":
        chosen = [adjust_color(image, {name: _factor(rng) for name in ENHANCERS}) for _ in range(count)]
    elif family == "flip":
        flipped = {"horizontal flip": image[:, ::-1].copy(), "vertical flip": image[::-1].copy()}
        names = rng.permutation(list(flipped)).tolist()
        both = [(pair, name) for name in names for pair in ((image, flipped[name]), (flipped[name], image))]
        return [Transformed(source, name, target) for (source, target), name in both][:count]
    else:
        gray = to_gray(image)
        ways = [Transformed(image, "grayscale", gray), Transformed(gray, "colorize", image)]
        return [ways[number] for number in rng.permutation(2)[:count]]
    return [Transformed(image, instruction, target) for instruction, target in chosen]


def _factor(rng: np.random.Generator) -> float:
    """Sample a factor of one decimal, which is not 1."""
    factor = round(rng.uniform(MIN_FACTOR, MAX_FACTOR), 1)
    return 1.1 if factor == 1 else factor


INSTRUCTIONS = (  # what a tokenizer is to have seen
    *(f"crop to {location}" for location in LOCATIONS),
    *(f"rotate {angle} degrees {direction}" for angle in ANGLES for direction in DIRECTIONS),
    *(f"{way} {name} by factor {factor / 10:g} and" for way, low, high in (("decrease", 3, 10), ("increase", 11, 21))
      for name in ENHANCERS for factor in range(low, high)),
    "horizontal flip", "vertical flip", "grayscale", "colorize", "the left object", "the right object",
)  # fmt: skip
