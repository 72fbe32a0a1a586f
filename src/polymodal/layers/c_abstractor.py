"""C-Abstractor: a convolutional connector that pools patches and keeps spatial locality (Honeybee, Cha et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every position of a feature map (LayerNorm2d)."""

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: channel attention from the globally averaged feature map (Hu et al. 2018)."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        # Squeeze: global average; excitation: bottleneck MLP, sigmoid; then scale each channel.
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class RegNetBlock(nn.Module):
    """RegNet bottleneck: 1 x 1, depthwise 3 x 3, squeeze-excitation, 1 x 1, residual (Radosavovic et al. 2020).

    Uses layer norm instead of batch norm and SiLU instead of ReLU, as Honeybee does.
    """

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.norm1 = ChannelNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm2 = ChannelNorm(channels)
        self.excitation = SqueezeExcitation(channels, max(round(channels_in / 4), 1))
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm3 = ChannelNorm(channels)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), ChannelNorm(channels))
            if channels_in != channels
            else nn.Identity()
        )

    def forward(self, x: Float[Tensor, "batch inputs rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        # 1 x 1 expansion, depthwise 3 x 3, squeeze-excitation, 1 x 1 projection, residual.
        y = F.silu(self.norm1(self.conv1(x)))
        y = self.excitation(F.silu(self.norm2(self.conv2(y))))
        return F.silu(self.norm3(self.conv3(y)) + self.shortcut(x))


class CAbstractor(nn.Module):
    """Convolutional connector: RegNet blocks, adaptive average pooling to side x side tokens, RegNet blocks, MLP."""

    def __init__(self, width: int, out_width: int, side: int, hidden_dim: int = 1024, depth: int = 3, grid: int = 24):
        """Build the connector.

        side: rows and columns of the output tokens. depth: blocks before and after pooling. grid: side of the patch
        grid for which position embeddings are learned; they are interpolated for other grids.
        """
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, width, grid, grid))
        self.before = nn.Sequential(
            *(RegNetBlock(hidden_dim if index else width, hidden_dim) for index in range(depth))
        )
        pooled = hidden_dim if depth else width
        self.after = nn.Sequential(*(RegNetBlock(pooled, pooled) for _ in range(depth)))
        self.readout = nn.Sequential(nn.Linear(pooled, out_width), nn.SiLU(), nn.Linear(out_width, out_width))

    def forward(
        self, tokens: Float[Tensor, "batch patches width"], grid: Sequence[int]
    ) -> Float[Tensor, "batch outputs out_width"]:
        """Return side * side output tokens. grid: rows and columns of the input patches."""
        positions: Tensor = self.pos_embed
        # Interpolate learned position embeddings to the grid of this image.
        if tuple(grid) != tuple(positions.shape[2:]):
            positions = F.interpolate(positions, tuple(grid), mode="bicubic")
        x = tokens.transpose(1, 2).unflatten(2, tuple(grid)) + positions
        # Section 3.2: L ResNet blocks, adaptive average pooling to sqrt(M) x sqrt(M), L ResNet blocks.
        x = self.after(F.adaptive_avg_pool2d(self.before(x), self.side))
        return self.readout(x.flatten(2).transpose(1, 2))
