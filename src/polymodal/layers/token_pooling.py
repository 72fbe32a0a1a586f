"""Token reduction on a patch grid without parameters: pixel shuffle (space-to-depth) and average pooling."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.errors import UserError


def pixel_shuffle(
    tokens: Float[Tensor, "batch patches width"], grid: Sequence[int], factor: int = 2
) -> Float[Tensor, "batch outputs channels"]:
    """Merge factor x factor neighboring patches into one token with factor^2 times the channels (InternVL 1.5, section
    3.1).

    Channels are ordered by row and column of the patch in its block, as in the official code (`ps_version="v2"`). This
    is the inverse of `torch.nn.PixelShuffle`. Raises UserError where the factor does not divide the grid.
    """
    rows, columns = grid
    if rows % factor or columns % factor:
        raise UserError(f"A grid of {rows} x {columns} patches does not divide into blocks of {factor} x {factor}.")
    # Split rows and columns into blocks, then concatenate the channels of each block.
    blocks = tokens.reshape(len(tokens), rows // factor, factor, columns // factor, factor, -1)
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


def average_pool(
    tokens: Float[Tensor, "batch patches width"], grid: Sequence[int], output_grid: Sequence[int]
) -> Float[Tensor, "batch outputs width"]:
    """Pool tokens by adaptive averaging to a smaller grid; equal blocks where it divides the grid."""
    rows, columns = output_grid
    maps = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    return F.adaptive_avg_pool2d(maps, (rows, columns)).flatten(2).transpose(1, 2)
