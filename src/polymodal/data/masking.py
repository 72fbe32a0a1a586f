"""Which parts of an example a method hides from itself, to predict them: spans of a sequence, blocks of an image.

And which part it shows alone: a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polymodal.rng import ExampleRNG

FLATTEST, TALLEST = 0.3, 1 / 0.3  # height to width of a block
FAILURES = 20  # of a block to find room, after which the image is left as it is


def mask_spans(
    lengths: Sequence[int], mask_ratio: float, example_rng: ExampleRNG, mean_span: float = 3.0
) -> Bool[Tensor, "batch longest"]:
    """Spans of Poisson length at random places, until `share` of each sequence is hidden (SpanBERT, BART).

    lengths: of the sequences, in whatever is to be hidden as a whole, such as words. The last span is cut to the share.
    """
    hidden = np.zeros((len(lengths), max(lengths, default=0)), dtype=bool)
    for row, length, rng in zip(hidden, lengths, example_rng.generators, strict=True):
        missing = round(mask_ratio * length)
        while missing > 0:
            span = min(max(int(rng.poisson(mean_span)), 1), missing)
            start = int(rng.integers(length - span + 1))
            missing -= span - int(row[start : start + span].sum())
            row[start : start + span] = True
    return torch.from_numpy(hidden)


def mask_time_spans(
    lengths: Sequence[int], probability: float, span_length: int, example_rng: ExampleRNG
) -> Bool[Tensor, "batch longest"]:
    """Every place begins a stretch of hidden ones with a probability; they may overlap (wav2vec 2.0, section 3.1).

    Where none begins, one does at a place at random, so that something is hidden of every sequence.
    """
    hidden = np.zeros((len(lengths), max(lengths, default=0)), dtype=bool)
    for row, length, rng in zip(hidden, lengths, example_rng.generators, strict=True):
        starts = np.flatnonzero(rng.random(length) < probability)
        for start in starts if len(starts) else [int(rng.integers(length))]:
            row[start : min(start + span_length, length)] = True
    return torch.from_numpy(hidden)


def mask_blocks(
    grid: int, mask_ratio: float, example_rng: ExampleRNG, min_area: float = 16 / 196
) -> Bool[Tensor, "batch patches"]:
    """Rectangles of patches at random places, until about `share` of each image is hidden (BEiT, Bao et al. 2022).

    grid: patches along a side. smallest: the least area of a rectangle as a share of the image, while as much is
    still to be hidden. Patches are in reading order; never more than the share is hidden.
    """
    hidden = np.zeros((len(example_rng.seeds), grid, grid), dtype=bool)
    for image, rng in zip(hidden, example_rng.generators, strict=True):
        missing, failures = round(mask_ratio * grid**2), 0
        while missing > 0 and failures < FAILURES:
            area = rng.uniform(min(min_area * grid**2, missing), missing)
            ratio = math.exp(rng.uniform(math.log(FLATTEST), math.log(TALLEST)))
            height, width = (
                min(max(round(side), 1), grid) for side in (math.sqrt(area * ratio), math.sqrt(area / ratio))
            )
            top, left = int(rng.integers(grid - height + 1)), int(rng.integers(grid - width + 1))
            block = image[top : top + height, left : left + width]
            new = block.size - int(block.sum())
            if 0 < new <= missing:
                block[:] = True
                missing -= new
            else:
                failures += 1
    return torch.from_numpy(hidden).flatten(1)


def random_boxes(grid: int, area: tuple[float, float], example_rng: ExampleRNG) -> Float[Tensor, "batch 4"]:
    """A rectangle of patches at a random place for each image: left, top, right, bottom in shares of the image.

    grid: patches along a side. area: smallest and largest share of the image; less where a flat or tall rectangle
    would stand out of it.
    """
    share = example_rng.uniform(*area)
    ratio = example_rng.uniform(math.log(FLATTEST), math.log(TALLEST)).exp()
    sides = torch.stack([(share / ratio).sqrt(), (share * ratio).sqrt()], dim=1)  # width, height
    sides = (sides * grid).round().clamp(1, grid)
    places = torch.stack([example_rng.uniform(), example_rng.uniform()], dim=1)
    first = (places * (grid + 1 - sides)).floor()
    return torch.cat([first, first + sides], dim=1) / grid


def boxes_to_patch_mask(boxes: Float[Tensor, "batch 4"], grid: int) -> Bool[Tensor, "batch patches"]:
    """The patches, in reading order, that a box touches, at least one. boxes: as `random_boxes` gives them."""
    edges = boxes * grid
    first = (edges[:, :2] + 1e-4).floor().clamp(0, grid - 1)  # an edge on the grid belongs to one side of it
    last = (edges[:, 2:] - 1e-4).ceil().clamp(1, grid).maximum(first + 1)
    place = torch.arange(grid, device=boxes.device)
    within = (place >= first[..., None]) & (place < last[..., None])  # batch, axis (x, y), place
    return (within[:, 1, :, None] & within[:, 0, None, :]).flatten(1)
