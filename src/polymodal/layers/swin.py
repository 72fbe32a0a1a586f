"""Blocks of the Swin transformer: attention in shifted windows, and patch merging (Liu et al. 2021, section 3).

Feature maps are (batch, rows, columns, width), of any size: they are padded to whole windows, and padding is attended
to, as in the released code for detection. A block can have a `GatedFusion` after its attention.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.cross_attention import mlp
from polymodal.layers.fusion_in_backbone import Context, GatedFusion
from polymodal.layers.transformer import DropPath

FeatureMap = Float[Tensor, "batch rows columns width"]
SHIFT_BIAS = -100.0  # of pairs that the cyclic shift brings into one window (released code)


@lru_cache(maxsize=32)
def relative_position_index(window: int) -> Int[Tensor, "tokens tokens"]:
    """Return, for each pair of tokens of a window, the row of the table of relative positions."""
    place = torch.arange(window)
    coordinates = torch.stack(torch.meshgrid(place, place, indexing="ij")).flatten(1)
    relative = coordinates[:, :, None] - coordinates[:, None, :] + window - 1
    return relative[0] * (2 * window - 1) + relative[1]


def resize_relative_positions(
    table: Float[Tensor, "offsets heads"], window: int
) -> Float[Tensor, "resized_offsets heads"]:
    """Return the table of relative positions for windows of another size.

    For a larger window the table is interpolated (bicubic), as where an image of a higher resolution has windows that
    cover the same fraction of it; of a smaller one, offsets are looked up as they are.
    """
    side, target = round(len(table) ** 0.5), 2 * window - 1
    if target == side:
        return table
    grid = table.T.unflatten(1, (side, side))
    if target < side:
        start = (side - target) // 2
        grid = grid[:, start : start + target, start : start + target]
    else:
        grid = F.interpolate(grid[None], size=(target, target), mode="bicubic", align_corners=False)[0]
    return grid.flatten(1).T


def to_windows(x: FeatureMap, window: int) -> Float[Tensor, "batch windows tokens width"]:
    """Cut a map of whole windows into windows, in row-major order."""
    rows, columns = x.shape[1] // window, x.shape[2] // window
    return x.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(x: Float[Tensor, "batch windows tokens width"], window: int, rows: int) -> FeatureMap:
    """Undo `to_windows`. rows: of windows."""
    x = x.unflatten(1, (rows, -1)).unflatten(3, (window, window))
    return x.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def shift_mask(rows: int, columns: int, window: int, shift: int) -> Float[Tensor, "windows tokens tokens"]:
    """Return the attention bias after a cyclic shift, which brings what is not adjacent into one window."""
    region = torch.zeros(rows, columns)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (vertical, horizontal) in enumerate((v, h) for v in slices for h in slices):
        region[vertical, horizontal] = number
    label = to_windows(region[None, :, :, None], window)[0, :, :, 0]
    return torch.where(label[:, :, None] == label[:, None], 0.0, SHIFT_BIAS)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a bias for each relative position and head (equation 4)."""

    def __init__(self, width: int, num_heads: int, window: int):
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.relative_positions = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_positions, std=0.02)

    def forward(self, x: FeatureMap, window: int, shifted: bool) -> FeatureMap:
        """window: tokens along a side of a window. shifted: whether windows are shifted by half of their side."""
        rows, columns = x.shape[1:3]
        window = min(window, rows, columns)
        shift = window // 2 if shifted and min(rows, columns) > window else 0
        x = F.pad(x, (0, 0, 0, -columns % window, 0, -rows % window))
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        table = resize_relative_positions(self.relative_positions, window)
        index = relative_position_index(window).to(x.device)
        bias = F.embedding(index.flatten(), table).unflatten(0, index.shape).permute(2, 0, 1)
        if shift:
            bias = bias + shift_mask(x.shape[1], x.shape[2], window, shift).to(x)[:, None]
        windows = self.qkv(to_windows(x, window)).unflatten(3, (3, self.num_heads, -1))
        query, key, value = windows.permute(3, 0, 1, 4, 2, 5)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        y = from_windows(self.out(y.transpose(2, 3).flatten(3)), window, x.shape[1] // window)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        return y[:, :rows, :columns]


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); with fusion, its output is added to that of attention."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        window: int,
        shifted: bool = False,
        drop_path_rate: float = 0.0,
        fusion: GatedFusion | None = None,
    ):
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, num_heads, window)
        self.mlp = mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path_rate)
        self.fusion = fusion

    def forward(self, x: FeatureMap, window: int | None = None, context: Context | None = None) -> FeatureMap:
        """window: by default that of the table of relative positions. context: see `GatedFusion`."""
        y = self.attention(self.norm1(x), window or self.attention.window, self.shifted)
        if self.fusion is not None:
            y = self.fusion(y.flatten(1, 2), context).view_as(y)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Concatenate each 2 x 2 tokens and project them to twice the width (section 3.1)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: FeatureMap) -> Float[Tensor, "batch half_rows half_columns double_width"]:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))
