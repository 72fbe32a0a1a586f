"""Columns of things: point clouds, images of all sides, and captions of these images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import BaseColumn, ImageColumn, PassThroughColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image, Images, Points, ViewCaptions
from polymodal.modalities.image import to_square
from polymodal.modalities.padding import Padded, pad
from polymodal.modalities.points import normalize_points, some_points, with_color


@dataclass(frozen=True)
class PointsColumn(BaseColumn):
    """Clouds of so many points, centred in the unit sphere, with colours."""

    reads = (Points,)
    num_points: int

    def load(self, corpus: Corpus, row: int) -> Float[np.ndarray, "points 6"]:
        """All points that there are. Raises UnreadableExample for a cloud without points."""
        return self.prepared(corpus.value(row, corpus.column_with(Points)))

    def prepared(self, points: np.ndarray) -> Float[np.ndarray, "points 6"]:
        if not len(points) or points.shape[1] < 3:
            raise UnreadableExample("there are no points")
        return np.concatenate([normalize_points(points[:, :3]), with_color(points)[:, 3:]], axis=1).astype(np.float32)

    def __call__(self, clouds: list[Any]) -> Float[Tensor, "batch points 6"]:
        """clouds: arrays with a line a point: x, y (up), z, and red, green and blue from 0 to 1 where there are any."""
        prepared = [self.prepared(np.asarray(cloud, dtype=np.float32)) for cloud in clouds]
        return torch.from_numpy(np.stack([some_points(cloud, self.num_points) for cloud in prepared]))


class ViewsColumn(ImageColumn):
    """All images of a thing, as squares of one size."""

    reads: ClassVar[tuple[type, ...]] = (Images, Image)

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        """uint8 views x size x size x 3; the image itself where an example has a single one."""
        if not corpus.has_modality(Images):
            return super().load(corpus, row)[None]
        return np.stack(
            [to_square(one, self.size, self.stretch) for one in corpus.value(row, corpus.column_with(Images))]
        )

    def __call__(self, things: list[Any]) -> Padded:  # type: ignore[override]
        """things: of each, its views, as `images` takes them."""
        return pad([self.images(list(views)) for views in things])

    def images(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """One image of each thing: arrays, Pillow images, paths or encoded bytes."""
        return super().__call__(images)


class ViewCaptionsColumn(PassThroughColumn):
    """Captions of views, the best first for each."""

    reads = (ViewCaptions,)
