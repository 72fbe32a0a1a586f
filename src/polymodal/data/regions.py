"""Regions of a batch: some of each image's boxes with their phrases, which follow a horizontal flip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polymodal.data.columns.regions import PhraseBox
from polymodal.rng import ExampleRNG
from polymodal.types import Example

PADDING = PhraseBox("", (0.0, 0.0, 1.0, 1.0))


class SampledRegions(NamedTuple):
    """boxes: left, top, right, bottom as fractions of the image. phrases: of all boxes in order, "" for padding. mask:
    1 for regions, 0 for padding."""

    boxes: Float[Tensor, "batch regions 4"]
    phrases: list[str]
    mask: Float[Tensor, "batch regions"]


def sample_regions(examples: Sequence[Example], count: int, example_rng: ExampleRNG) -> SampledRegions:
    """Sample `count` of the `regions` of each example at random, without replacement, and pad where there are fewer."""
    sampled = []
    for example, rng in zip(examples, example_rng.generators, strict=True):
        regions = example.get("regions") or []
        chosen = [regions[place] for place in rng.permutation(len(regions))[:count]]
        sampled.append(chosen + [PADDING] * (count - len(chosen)))
    boxes = torch.tensor([[region.box for region in regions] for regions in sampled])
    mask = torch.tensor([[float(region != PADDING) for region in regions] for regions in sampled])
    return SampledRegions(boxes, [region.phrase for regions in sampled for region in regions], mask)


def flip_boxes(
    boxes: Float[Tensor, "batch regions 4"], flipped: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch regions 4"]:
    """Flip the boxes of the images that are flipped horizontally."""
    left, top, right, bottom = boxes.unbind(-1)
    mirrored = torch.stack([1 - right, top, 1 - left, bottom], dim=-1)
    return torch.where(flipped[:, None, None], mirrored, boxes)
