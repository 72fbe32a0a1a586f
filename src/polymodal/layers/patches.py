"""N-dimensional patches: images and spectrograms (2-D), videos and volumes (3-D), series (1-D)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.errors import UserError


def grid_of(size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches per axis. Raises UserError where patches do not tile the input."""
    if len(size) != len(patch_size) or any(side % patch for side, patch in zip(size, patch_size, strict=True)):
        sizes = " x ".join(map(str, size)), " x ".join(map(str, patch_size))
        raise UserError(f"Patches of {sizes[1]} do not tile an input of {sizes[0]}.")
    return tuple(side // patch for side, patch in zip(size, patch_size, strict=True))


def patchify_nd(
    values: Float[Tensor, "batch channels *size"], patch_size: Sequence[int]
) -> Float[Tensor, "batch patches values"]:
    """Cut a grid into patches in row-major order (the last axis varies fastest).

    Values of a patch are ordered channel first, as a convolution with this kernel size and stride flattens them.
    """
    grid = grid_of(values.shape[2:], patch_size)
    axes = len(grid)
    # (batch, channels, n1, p1, n2, p2, ...) -> (batch, n1, n2, ..., channels, p1, p2, ...).
    split = values.reshape(*values.shape[:2], *(n for pair in zip(grid, patch_size, strict=True) for n in pair))
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return split.permute(order).reshape(len(values), math.prod(grid), -1)


def unpatchify_nd(
    patches: Float[Tensor, "batch patches values"], patch_size: Sequence[int], grid: Sequence[int]
) -> Float[Tensor, "batch channels *size"]:
    """Invert `patchify_nd`."""
    axes = len(grid)
    split = patches.reshape(len(patches), *grid, -1, *patch_size)
    order = [0, 1 + axes, *(n for axis in range(axes) for n in (1 + axis, 2 + axes + axis))]
    sides = [count * patch for count, patch in zip(grid, patch_size, strict=True)]
    return split.permute(order).reshape(len(patches), -1, *sides)


def sine_positions_nd(grid: Sequence[int], width: int) -> Float[Tensor, "patches width"]:
    """Return fixed sine-cosine position embeddings of a grid; every axis has an equal, even number of channels.

    The 2-D case is that of MoCo v3 and MAE; leftover channels are 0. Raises UserError for a width below two channels
    per axis.
    """
    channels = width // (2 * len(grid)) * 2
    if not channels:
        raise UserError(f"A width of {width} is too small for position embeddings of {len(grid)} axes.")
    omega = 10_000.0 ** (-torch.arange(0, channels, 2) / channels)
    parts = []
    for axis, count in enumerate(grid):
        angle = torch.arange(count)[:, None] * omega
        along = torch.cat([angle.sin(), angle.cos()], dim=1)
        shape = [1] * len(grid) + [channels]
        shape[axis] = count
        parts.append(along.reshape(shape).expand(*grid, channels))
    embeddings = torch.cat(parts, dim=-1).flatten(0, -2)
    return torch.nn.functional.pad(embeddings, (0, width - embeddings.shape[1]))
