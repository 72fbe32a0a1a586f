"""Random numbers that belong to an example, whatever batch, process or worker it is in."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt64
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(value: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The finaliser of SplitMix64 (Steele et al. 2014): neighbouring integers become unrelated ones."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
    return value ^ (value >> np.uint64(31))


class ExampleRNG:
    """A stream of random numbers for each example of a batch.

    An example's numbers depend on its own seed and on how many were drawn before, not on its neighbours: two processes
    with half of a batch each draw what one process with all of it would.
    """

    def __init__(self, seeds: UInt64[np.ndarray, " batch"]):
        self.seeds = seeds
        self._drawn = 0

    @classmethod
    def of(cls, seed: int, first: int, count: int) -> ExampleRNG:
        """The streams of examples number `first` to `first + count - 1` of the whole training."""
        numbers = np.arange(first, first + count, dtype=np.uint64)
        return cls(splitmix64(numbers * np.uint64(_GOLDEN) + splitmix64(np.array([seed + 1], dtype=np.uint64))))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Float[Tensor, " batch"]:
        """One number an example, uniform in [low, high)."""
        self._drawn += 1
        counter = np.uint64(self._drawn * _GOLDEN % 2**64)
        numbers = (splitmix64(self.seeds + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy((low + (high - low) * numbers).astype(np.float32))

    def numbers(self, *shape: int) -> Tensor:
        """Numbers of this shape for each example, uniform in [0, 1), from its generator: (batch, *shape)."""
        return torch.from_numpy(np.stack([rng.random(shape, dtype=np.float32) for rng in self.generators]))

    def repeat(self, times: int) -> ExampleRNG:
        """The same numbers for several parts of each example, such as the frames of a clip, drawn anew."""
        return ExampleRNG(np.repeat(self.seeds, times))

    def split(self, parts: int) -> ExampleRNG:
        """Streams of their own for several parts of each example, such as its pairs; part after part of an example."""
        part = np.tile(np.arange(1, parts + 1, dtype=np.uint64), len(self.seeds))
        return ExampleRNG(splitmix64(np.repeat(self.seeds, parts) + part * np.uint64(_GOLDEN)))

    @cached_property
    def generators(self) -> list[np.random.Generator]:
        """One NumPy generator an example, for choices that are not one number each."""
        return [np.random.Generator(np.random.PCG64(int(seed))) for seed in self.seeds]
