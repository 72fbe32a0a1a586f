"""Disjoint pools of examples, for methods that use paired data as unpaired; and pairs that are exchanged."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from polymodal.modalities.text import Caption


def pool_of(text: str, fractions: Sequence[float]) -> int:
    """Return the pool of a text, by its hash: equal texts are in the same pool, in every run.

    fractions: of the pools, relative to each other.
    """
    place = zlib.crc32(text.encode()) / 2**32 * sum(fractions)
    return min(int(np.searchsorted(np.cumsum(fractions), place, side="right")), len(fractions) - 1)


def rotated(chosen: Bool[Tensor, " batch"]) -> list[int]:
    """Return the indices of examples, of which the chosen ones are rotated, so that each still occurs once."""
    indices, places = list(range(len(chosen))), chosen.nonzero().flatten().tolist()
    for place, other in zip(places, [*places[1:], *places[:1]], strict=True):
        indices[place] = other
    return indices


def in_first_pool(captions: Sequence[list[Caption]], fraction: float) -> Bool[Tensor, " batch"]:
    """Return True for a fraction of the examples, chosen by their captions; False for those without any."""
    texts = ["\n".join(caption.text for caption in some) for some in captions]
    return torch.tensor([bool(text) and pool_of(text, (fraction, 1 - fraction)) == 0 for text in texts])
