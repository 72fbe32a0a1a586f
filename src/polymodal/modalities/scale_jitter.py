"""Large-scale jitter of images with boxes (Ghiasi et al. 2021, section 3.2), as SimVG's released code has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.rng import ExampleRNG

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image
CROP_THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5)  # fractions of the boxes' area in the crop, the first that a crop reaches
MIN_INSIDE = 0.3  # without a crop that has so much of the boxes, the image stays whole
ATTEMPTS = 100  # crops for each threshold


def large_scale_jitter(
    image: Float[Tensor, "3 size size"],
    boxes: Sequence[Box],
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "3 size size"], tuple[Box, ...]]:
    """Resize an image by a random factor and bring it back to its size.

    A factor below 1 takes detail away; one above 1 crops a window of 1 / factor of the side, which holds most of the
    boxes' area, and resizes it; boxes are cut to the window. There is no flip, which would contradict "left" and
    "right". scale: minimum and maximum factor; (1, 1) changes nothing.
    """
    factor = float(rng.uniform(*scale))
    size = image.shape[-1]
    if factor < 1:
        small = _resized(image, max(1, round(factor * size)))
        return _resized(small, size), tuple(boxes)
    side = 1 / factor
    window = _window(np.array(boxes, dtype=float).reshape(-1, 4), side, rng)
    if side == 1 or window is None:
        return image, tuple(boxes)
    pixels = max(1, round(side * size))
    left, top = (min(round(edge * size), size - pixels) for edge in window)
    crop = image[:, top : top + pixels, left : left + pixels]
    moved = [
        [(edge * size - start) / pixels for edge, start in zip(box, (left, top) * 2, strict=True)] for box in boxes
    ]
    return _resized(crop, size), tuple((_edge(a), _edge(b), _edge(c), _edge(d)) for a, b, c, d in moved)


def jitter_batch(
    images: Float[Tensor, "batch 3 size size"],
    boxes: Sequence[Sequence[Box]],
    scale: tuple[float, float],
    example_rng: ExampleRNG,
) -> tuple[Float[Tensor, "batch 3 size size"], list[tuple[Box, ...]]]:
    """Apply `large_scale_jitter` to each image with its boxes."""
    each = zip(images, boxes, example_rng.generators, strict=True)
    jittered = [large_scale_jitter(image, image_boxes, scale, rng) for image, image_boxes, rng in each]
    return torch.stack([image for image, _ in jittered]), [image_boxes for _, image_boxes in jittered]


def _window(boxes: np.ndarray, side: float, rng: np.random.Generator) -> tuple[float, float] | None:
    """Left and top of a window that holds as much of every box as the first threshold that can be reached."""
    best, best_inside = None, 0.0
    for threshold in CROP_THRESHOLDS:
        for _ in range(ATTEMPTS):
            corner = rng.random(2) * (1 - side)
            inside = _inside(boxes, corner, side)
            if inside > best_inside:
                best, best_inside = corner, inside
            if inside >= threshold:
                return float(corner[0]), float(corner[1])
    return (float(best[0]), float(best[1])) if best is not None and best_inside >= MIN_INSIDE else None


def _inside(boxes: np.ndarray, corner: np.ndarray, side: float) -> float:
    """The smallest fraction of a box's area that is in the window; 1 without boxes."""
    overlap = np.minimum(boxes[:, 2:], corner + side) - np.maximum(boxes[:, :2], corner)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return float((overlap.clip(0).prod(1) / np.maximum(area, 1e-9)).min(initial=1.0))


def _edge(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _resized(image: Float[Tensor, "3 _ _"], size: int) -> Float[Tensor, "3 size size"]:
    smaller = size < image.shape[-1]
    return F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=smaller)[0]
