"""Bounding boxes as tensors: center x, center y, width, height (cxcywh), relative to the image size, as DETR
predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
