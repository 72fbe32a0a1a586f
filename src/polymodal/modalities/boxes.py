"""Bounding boxes as tensors: center x, center y, width, height (cxcywh), relative to the image size, as DETR
predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.rng import ExampleRNG

MIN_ASPECT, MAX_ASPECT = 0.3, 1 / 0.3  # height to width of a random box


@dataclass(frozen=True)
class PaddedBoxes:
    """Batch of padded sets of boxes.

    boxes: cxcywh in 0-1; values after an example's count have no meaning.
    """

    boxes: Float[Tensor, "batch most 4"]
    counts: Int[Tensor, " batch"]

    @classmethod
    def of(cls, sets: Sequence[Sequence[Sequence[float]]]) -> PaddedBoxes:
        """Collate boxes. sets: per example, xyxy boxes relative to the image size."""
        counts = [len(example_boxes) for example_boxes in sets]
        boxes = torch.zeros(len(sets), max([*counts, 1]), 4)
        for row, example_boxes in zip(boxes, sets, strict=True):
            if example_boxes:
                row[: len(example_boxes)] = xyxy_to_cxcywh(torch.tensor(example_boxes, dtype=torch.float32))
        return cls(boxes, torch.tensor(counts))

    @property
    def mask(self) -> Bool[Tensor, "batch most"]:
        """True for real boxes."""
        return torch.arange(self.boxes.shape[1], device=self.boxes.device) < self.counts[:, None]

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device | str) -> PaddedBoxes:
        return PaddedBoxes(self.boxes.to(device), self.counts.to(device))


def xyxy_to_cxcywh(corners: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Convert left, top, right, bottom to center x, center y, width, height."""
    first, last = corners.split(2, dim=-1)
    return torch.cat([(first + last) / 2, last - first], dim=-1)


def cxcywh_to_xyxy(centers: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Convert center x, center y, width, height to left, top, right, bottom."""
    middle, size = centers.split(2, dim=-1)
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1)


def intersection_over_union(
    a: Float[Tensor, "*#shape 4"], b: Float[Tensor, "*#shape 4"]
) -> tuple[Float[Tensor, "*_"], Float[Tensor, "*_"]]:
    """Return IoU and area of the union of pairs of xyxy boxes, broadcasting shapes.

    Two boxes without area have an IoU of 0.
    """
    intersection = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = _area(a) + _area(b) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny), union


def generalized_iou(a: Float[Tensor, "*#shape 4"], b: Float[Tensor, "*#shape 4"]) -> Float[Tensor, "*_"]:
    """Return the GIoU of xyxy boxes, from -1 to 1 (Rezatofighi et al. 2019).

    IoU minus the fraction of the enclosing box that neither covers.
    """
    iou, union = intersection_over_union(a, b)
    enclosing = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return iou - (enclosing - union) / enclosing.clamp(min=torch.finfo(enclosing.dtype).tiny)


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)


def random_boxes(grid: int, area: tuple[float, float], example_rng: ExampleRNG) -> Float[Tensor, "batch 4"]:
    """Sample a rectangle of patches for each image: left, top, right, bottom as fractions of the image.

    grid: patches along a side. area: minimum and maximum, as fractions of the image; less where a flat or tall
    rectangle would reach over its edge.
    """
    fraction = example_rng.uniform(*area)
    aspect = example_rng.uniform(math.log(MIN_ASPECT), math.log(MAX_ASPECT)).exp()
    sides = torch.stack([(fraction / aspect).sqrt(), (fraction * aspect).sqrt()], dim=1)  # width, height
    sides = (sides * grid).round().clamp(1, grid)
    positions = torch.stack([example_rng.uniform(), example_rng.uniform()], dim=1)
    first = (positions * (grid + 1 - sides)).floor()
    return torch.cat([first, first + sides], dim=1) / grid


def boxes_to_patch_mask(boxes: Float[Tensor, "batch 4"], grid: int) -> Bool[Tensor, "batch patches"]:
    """Return True for the patches, in reading order, that a box touches; at least one.

    boxes: left, top, right, bottom as fractions of the image. grid: patches along a side.
    """
    edges = boxes * grid
    first = (edges[:, :2] + 1e-4).floor().clamp(0, grid - 1)  # an edge on the grid belongs to one side of it
    last = (edges[:, 2:] - 1e-4).ceil().clamp(1, grid).maximum(first + 1)
    position = torch.arange(grid, device=boxes.device)
    within = (position >= first[..., None]) & (position < last[..., None])  # batch, axis (x, y), position
    return (within[:, 1, :, None] & within[:, 0, None, :]).flatten(1)


def keep_patches(
    image: Float[Tensor, "batch *frames 3 size size"], patch_mask: Bool[Tensor, "batch patches"]
) -> Float[Tensor, "batch *frames 3 size size"]:
    """Set pixels outside the patches of a mask to 0; a clip has one mask for all frames.

    patch_mask: True for patches that stay, of a square grid in reading order.
    """
    grid = math.isqrt(patch_mask.shape[1])
    patch = image.shape[-1] // grid
    pixels = patch_mask.unflatten(1, (grid, grid)).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return image * pixels.view(len(image), *[1] * (image.ndim - 3), *pixels.shape[1:])


def mean_over_patches(
    hidden_states: Float[Tensor, "batch patches width"], patch_mask: Bool[Tensor, "batch patches"]
) -> Float[Tensor, "batch width"]:
    """Average the hidden states of the patches of a mask, at least one for each example."""
    return (hidden_states * patch_mask[..., None]).sum(1) / patch_mask.sum(1, keepdim=True)
