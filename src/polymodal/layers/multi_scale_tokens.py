"""Feature maps of several scales of a volume as tokens of one width (Abn-BLIP's released code)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveInt
from polymodal.errors import UserError
from polymodal.layers.projection_head import SyncBatchNorm3d


@dataclass(frozen=True)
class MultiScaleTokensConfig:
    """Configuration of the tokens of a volume's feature maps."""

    grid: PositiveInt = 2
    """Side of the cube of tokens that each of the first three scales has; even."""
    channels: PositiveInt = 32
    """Channels of the 3 x 3 x 3 convolutions."""
    width: PositiveInt = 64
    """Width of the tokens."""
    position_width: PositiveInt = 32
    """Hidden width of the MLP over the positions of the last scale."""
    num_tokens: PositiveInt = 4
    """Tokens of each of the last two scales, by linear layers over their positions."""

    @property
    def total(self) -> int:
        """Tokens of all scales."""
        return 3 * self.grid**3 + 2 * self.num_tokens


class MultiScaleTokens(nn.Module):
    """Five feature maps to tokens: a cube each of the first three, mixtures of positions of the last two."""

    def __init__(self, config: MultiScaleTokensConfig, channels: Sequence[int], last_size: Sequence[int]):
        """channels: of the feature maps. last_size: depth, height and width of the last. Raises UserError for an odd
        grid."""
        super().__init__()
        if config.grid % 2:
            raise UserError(f"The grid of tokens is even, as the fourth scale has half of it; not {config.grid}.")
        self.config = config
        wide = config.channels
        # Level n is averaged to `sizes[n]` before its convolutions, and max-pooled down to the grid after them.
        self.sizes = (4 * config.grid, 2 * config.grid, config.grid, config.grid // 2)
        self.scales = nn.ModuleList()
        for number, given in enumerate(channels):
            layers: list[nn.Module] = [nn.Conv3d(given, wide, 3, padding=1), SyncBatchNorm3d(wide), nn.ReLU()]
            if number < 2:
                layers.append(nn.MaxPool3d(2))
            if number == 0:
                layers += [nn.Conv3d(wide, wide, 3, padding=1), SyncBatchNorm3d(wide), nn.ReLU(), nn.MaxPool3d(2)]
            self.scales.append(nn.Sequential(*layers, nn.Conv3d(wide, config.width, 1), nn.Flatten(2)))
        positions = math.prod(last_size)
        self.mix4 = nn.Linear(self.sizes[3] ** 3, config.num_tokens)
        self.mix5 = nn.Sequential(
            nn.Linear(positions, config.position_width), nn.ReLU(), nn.Linear(config.position_width, config.num_tokens)
        )

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _ _"]]) -> Float[Tensor, "batch tokens width"]:
        pooled = [F.adaptive_avg_pool3d(one, size) for one, size in zip(maps, self.sizes, strict=False)]
        first, second, third, fourth, fifth = (
            scale(one) for scale, one in zip(self.scales, [*pooled, maps[4]], strict=True)
        )
        return torch.cat([first, second, third, self.mix4(fourth), self.mix5(fifth)], dim=2).transpose(1, 2)
