"""Dynamic head: attention over scales, locations and channels of a feature pyramid (Dai et al. 2021).

Scale-aware attention weights the adjacent levels, spatial-aware attention is a deformable convolution, and task-aware
attention is a dynamic ReLU. `DenseHead` predicts a box and a centerness from each location (ATSS, Zhang et al. 2020),
and `TokenAlignment` which tokens of a text each location shows (GLIP, Li et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.feature_pyramid import flatten_levels

TAPS = 9  # of a 3 x 3 kernel


def hard_sigmoid(x: Tensor) -> Tensor:
    """Return relu6(x + 3) / 6."""
    return F.relu6(x + 3) / 6


class DeformableConvolution(nn.Module):
    """3 x 3 convolution whose taps have an offset and a weight at each location (Zhu et al. 2019, DCNv2).

    Taps are sampled bilinearly, with zeros outside the map.
    """

    def __init__(self, channels: int, stride: int = 1, groups: int = 16):
        """groups: of the group norm after it."""
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv2d(channels, channels, 3, stride, 1)
        self.norm = nn.GroupNorm(groups, channels)
        nn.init.normal_(self.convolution.weight, std=0.01)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def sample(
        self, x: Float[Tensor, "batch channels _ _"], offset: Float[Tensor, "batch 18 rows columns"]
    ) -> Float[Tensor, "batch channels taps rows columns"]:
        """Sample the taps. offset: vertical and horizontal one of each tap, tap after tap, in tokens of x."""
        height, width = x.shape[-2:]
        rows, columns = offset.shape[-2:]
        vertical, horizontal = offset.unflatten(1, (TAPS, 2)).unbind(2)
        tap = torch.arange(TAPS, device=x.device)
        row = torch.arange(rows, device=x.device)[None, :, None] * self.stride + (tap // 3 - 1)[:, None, None]
        column = torch.arange(columns, device=x.device)[None, None] * self.stride + (tap % 3 - 1)[:, None, None]
        # Coordinates of `grid_sample` without align_corners: -1 and 1 are the outer edges of the map.
        y, x_axis = (2 * (row + vertical) + 1) / height - 1, (2 * (column + horizontal) + 1) / width - 1
        grid = torch.stack([x_axis, y], dim=-1).flatten(1, 2)
        sampled = F.grid_sample(x, grid.to(x.dtype), align_corners=False)
        return sampled.unflatten(2, (TAPS, rows))

    def forward(
        self,
        x: Float[Tensor, "batch channels _ _"],
        offset: Float[Tensor, "batch 18 rows columns"],
        weight: Float[Tensor, "batch 9 rows columns"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        taps = self.sample(x, offset) * weight[:, None]
        kernel, bias = self.convolution.weight.flatten(2), self.convolution.bias
        assert bias is not None
        return self.norm(torch.einsum("bcthw,oct->bohw", taps, kernel) + bias[:, None, None])


class DynamicReLU(nn.Module):
    """max(a1 * x + b1, a2 * x + b2) with coefficients of each channel from the mean over the map (Chen et al. 2020)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, 4 * channels)

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        coefficients = hard_sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3)))))) - 0.5
        a1, b1, a2, b2 = coefficients[:, :, None, None].chunk(4, dim=1)
        return torch.maximum(x * (2 * a1 + 1) + b1, x * (2 * a2) + b2)


class DynamicHeadBlock(nn.Module):
    """One block of the dynamic head.

    Offsets and weights of the deformable convolutions are those of the level itself; for the coarser level they are
    resized to its resolution.
    """

    def __init__(self, channels: int, groups: int = 16):
        super().__init__()
        # From the coarser level, the level itself, and the finer one.
        self.convolutions = nn.ModuleList(DeformableConvolution(channels, stride, groups) for stride in (1, 1, 2))
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.scale_attention = nn.Conv2d(channels, 1, 1)
        self.activation = DynamicReLU(channels)
        nn.init.normal_(self.scale_attention.weight, std=0.01)
        assert self.scale_attention.bias is not None
        nn.init.zeros_(self.scale_attention.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """levels: (batch, channels, rows, columns), from the finest to the coarsest."""
        return [self._level(levels, number) for number in range(len(levels))]

    def _level(self, levels: Sequence[Tensor], number: int) -> Float[Tensor, "batch channels rows columns"]:
        x = levels[number]
        offset, weight = self.offset(x).split([2 * TAPS, TAPS], dim=1)
        from_coarser, at_level, from_finer = self.convolutions
        parts = [at_level(x, offset, weight.sigmoid())]
        if number:
            parts.append(from_finer(levels[number - 1], offset, weight.sigmoid()))
        if number + 1 < len(levels):
            coarser = levels[number + 1]
            resized = [F.interpolate(each, coarser.shape[-2:], mode="bilinear") for each in (offset, weight.sigmoid())]
            enlarged = F.interpolate(
                from_coarser(coarser, *resized), size=x.shape[-2:], mode="bilinear", align_corners=True
            )
            parts.append(enlarged)
        # Scale-aware attention: one weight for each level, from the mean over its locations.
        weighted = [
            hard_sigmoid(F.relu(self.scale_attention(part.mean((2, 3), keepdim=True)))) * part for part in parts
        ]
        return self.activation(torch.stack(weighted).mean(0))


class DensePrediction(NamedTuple):
    """Of each location, level after level: features, deltas of its anchor's box, and the logit of its centerness."""

    features: Float[Tensor, "batch locations channels"]
    deltas: Float[Tensor, "batch locations 4"]
    centerness: Float[Tensor, "batch locations"]


class DenseHead(nn.Module):
    """Blocks of the dynamic head, and convolutions that predict one box and its centerness at each location."""

    def __init__(self, channels: int, depth: int, num_levels: int, groups: int = 16):
        super().__init__()
        self.blocks = nn.ModuleList(DynamicHeadBlock(channels, groups) for _ in range(depth))
        self.box, self.centerness = nn.Conv2d(channels, 4, 1), nn.Conv2d(channels, 1, 1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        for layer in (self.box, self.centerness):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> DensePrediction:
        for block in self.blocks:
            levels = block(levels)
        boxes = [self.box(each) * scale for each, scale in zip(levels, self.scales, strict=True)]
        centerness = flatten_levels([self.centerness(each) for each in levels])[..., 0]
        return DensePrediction(flatten_levels(levels), flatten_levels(boxes), centerness)


class TokenAlignment(nn.Module):
    """Logits that a location shows a token: o (W t/2)^T / exp(log_scale) + t b + b0, with t normalized (GLIP).

    b0 is the logit of the prior probability of a positive. Logits are clamped to 50,000.
    """

    LIMIT = 50_000.0

    def __init__(self, channels: int, text_width: int, prior_probability: float = 0.01):
        super().__init__()
        self.projection = nn.Linear(text_width, channels)
        self.token_bias = nn.Parameter(torch.zeros(text_width))
        self.bias = nn.Parameter(torch.tensor(-math.log((1 - prior_probability) / prior_probability)))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def forward(
        self,
        features: Float[Tensor, "batch locations channels"],
        tokens: Float[Tensor, "batch length text_width"],
    ) -> Float[Tensor, "batch locations length"]:
        tokens = F.normalize(tokens, dim=-1)
        logits = features @ self.projection(tokens / 2).transpose(1, 2) / self.log_scale.exp()
        logits = logits + (tokens @ self.token_bias + self.bias)[:, None]
        return logits.clamp(-self.LIMIT, self.LIMIT)
