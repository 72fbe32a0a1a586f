"""Point clouds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Points
from polymodal.modalities.points import any_points, normalize_points, some_points, with_color
from polymodal.rng import ExampleRNG


@dataclass(frozen=True)
class PointsColumn(BaseColumn):
    """Point clouds with `num_points` points, centered in the unit sphere, with colors."""

    reads = (Points,)
    num_points: int

    def load(self, corpus: Corpus, row: int) -> Float[np.ndarray, "points 6"]:
        """Load all points as they are stored. Raises UnreadableExample for no points, or NaN."""
        return self.prepared(corpus.value(row, corpus.column_with(Points)))

    def prepared(self, points: np.ndarray) -> Float[np.ndarray, "points 6"]:
        if not len(points) or points.shape[1] < 3:
            raise UnreadableExample("there are no points")
        if not np.isfinite(points).all():
            raise UnreadableExample("there are points that are no finite numbers")
        return with_color(points).astype(np.float32)

    def __call__(self, clouds: list[Any]) -> Float[Tensor, "batch points 6"]:
        """clouds: arrays with a row for each point: x, y (up), z, and optionally red, green and blue from 0 to 1."""
        prepared = [self.prepared(np.asarray(cloud, dtype=np.float32)) for cloud in clouds]
        return _centered([some_points(cloud, self.num_points) for cloud in prepared])

    def sample(self, clouds: list[np.ndarray], example_rng: ExampleRNG) -> Float[Tensor, "batch points 6"]:
        """Collate `num_points` points of each loaded cloud, sampled at random."""
        each = zip(clouds, example_rng.generators, strict=True)
        return _centered([any_points(cloud, self.num_points, rng) for cloud, rng in each])


def _centered(clouds: list[np.ndarray]) -> Float[Tensor, "batch points 6"]:
    """Normalize the sampled points of each cloud, as ULIP does, and not those that they were sampled from."""
    return torch.from_numpy(np.stack([np.c_[normalize_points(cloud[:, :3]), cloud[:, 3:]] for cloud in clouds]))
