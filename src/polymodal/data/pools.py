"""Disjoint pools of examples, for methods that use paired data as unpaired."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


def pool_of(text: str, fractions: Sequence[float]) -> int:
    """Return the pool of a text, by its hash: equal texts are in the same pool, in every run.

    fractions: of the pools, relative to each other.
    """
    place = zlib.crc32(text.encode()) / 2**32 * sum(fractions)
    return min(int(np.searchsorted(np.cumsum(fractions), place, side="right")), len(fractions) - 1)
