"""Feature pyramid network (FPN): maps of all resolutions with the semantics of the coarsest (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Pyramid = Sequence[Float[Tensor, "batch channels _ _"]]


class FeaturePyramid(nn.Module):
    """1 x 1 convolution of every map, sum with the enlarged coarser one, 3 x 3 convolution; further maps of stride 2.

    The further maps follow the coarsest one, as P6 and P7 of RetinaNet follow P5.
    """

    def __init__(self, widths: Sequence[int], channels: int, extra_levels: int = 2):
        """widths: channels of the maps, from the finest to the coarsest. extra_levels: further, coarser maps."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(extra_levels))
        for convolution in (*self.lateral, *self.output, *self.extra):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> list[Tensor]:
        """maps: (batch, width, rows, columns), from the finest to the coarsest. Returns the maps of all levels."""
        laterals = [layer(each) for layer, each in zip(self.lateral, maps, strict=True)]
        for level in range(len(laterals) - 2, -1, -1):
            size = laterals[level].shape[-2:]
            laterals[level] = laterals[level] + F.interpolate(laterals[level + 1], size=size, mode="nearest")
        levels = [layer(each) for layer, each in zip(self.output, laterals, strict=True)]
        for number, layer in enumerate(self.extra):
            levels.append(layer(F.relu(levels[-1]) if number else levels[-1]))
        return levels


def flatten_levels(maps: Pyramid) -> Float[Tensor, "batch locations channels"]:
    """Return the locations of all levels, level after level, in row-major order."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)
