"""RoIAlign: features of boxes by bilinear sampling (He et al. 2017, section 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def roi_align(
    features: Float[Tensor, "batch rows columns dim"],
    boxes: Float[Tensor, "boxes 4"],
    image: Int[Tensor, " boxes"],
    output_size: int = 1,
    sampling_ratio: int = 2,
) -> Float[Tensor, "boxes output output dim"]:
    """Return the features of each box, on a grid of `output_size` x `output_size` cells.

    boxes: xyxy as fractions of the image. image: of each box, its row of `features`. sampling_ratio: sampled points
    along each side of a cell, which are averaged. Points are half a cell of the feature map off the edge at most, as in
    the aligned version (`aligned=True` of torchvision).
    """
    points = output_size * sampling_ratio
    along = (torch.arange(points, device=boxes.device, dtype=boxes.dtype) + 0.5) / points
    left, top, right, bottom = boxes.unbind(-1)
    x = left[:, None] + (right - left)[:, None] * along
    y = top[:, None] + (bottom - top)[:, None] * along
    grid = torch.stack([x[:, None, :].expand(-1, points, -1), y[:, :, None].expand(-1, -1, points)], -1) * 2 - 1
    maps = features.permute(0, 3, 1, 2)[image]
    sampled = F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, sampling_ratio).permute(0, 2, 3, 1)
