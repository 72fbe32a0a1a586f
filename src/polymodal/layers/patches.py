"""Pictures as sequences of patches, and back."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


def patchify(image: Float[Tensor, "batch 3 height width"], patch: int) -> Float[Tensor, "batch patches values"]:
    """Cut into square patches in reading order; a patch's values are ordered channel, row, column."""
    batch, channels, height, width = image.shape
    x = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch**2)


def unpatchify(patches: Float[Tensor, "batch patches values"], patch: int) -> Float[Tensor, "batch channels size size"]:
    """The way back to a square picture."""
    grid = math.isqrt(patches.shape[1])
    x = patches.unflatten(2, (-1, patch, patch)).unflatten(1, (grid, grid))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
