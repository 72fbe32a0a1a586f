"""Things as point clouds, views, names and captions of views, to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import (
    BaseColumn,
    ColumnsProcessor,
    ImageColumn,
    LabelColumn,
    PassThroughColumn,
    TextColumn,
    color_statistics,
    load_columns,
    read_available_columns,
    reject_unknown_columns,
)
from polymodal.errors import UnreadableExample
from polymodal.modalities import Category, Image, Images, Points, Text, ViewCaptions
from polymodal.modalities.image import to_square
from polymodal.modalities.padding import pad
from polymodal.modalities.points import normalize_points, some_points, with_color
from polymodal.modalities.text import Tokenizer
from polymodal.types import Batch, Example


@dataclass(frozen=True)
class PointsColumn(BaseColumn):
    """Clouds of so many points, centred in the unit sphere, with colours."""

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

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        """uint8 views x size x size x 3; the image itself where an example has a single one."""
        if not corpus.has_modality(Images):
            return super().load(corpus, row)[None]
        return np.stack(
            [to_square(one, self.size, self.stretch) for one in corpus.value(row, corpus.column_with(Images))]
        )


class ViewCaptionsColumn(PassThroughColumn):
    """Captions of views, the best first for each."""

    kind = ViewCaptions


KINDS: dict[str, tuple[type, ...]] = {
    "points": (Points,),
    "views": (Images, Image),
    "text": (Text,),
    "captions": (ViewCaptions,),
    "label": (Category,),
}


class ObjectProcessor(ColumnsProcessor):
    """Reads whatever an example has of `{"points", "views", "text", "captions", "label"}`.

    Batches are made of points, texts, single images (`image`), and `views`, which are all images of each thing.
    """

    def __init__(self, points: PointsColumn, views: ViewsColumn, text: TextColumn, label: LabelColumn | None = None):
        further = {"label": label} if label else {}
        super().__init__(points=points, views=views, text=text, captions=ViewCaptionsColumn(), **further)
        self.points = points
        self.views = views
        self.text = text
        self.label = label

    @classmethod
    def fit(
        cls,
        corpora: Sequence[Corpus],
        num_points: int,
        image_size: int,
        learn: Callable[[Iterable[str]], Tokenizer],
        colors: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> ObjectProcessor:
        """Learn a tokenizer from captions of all corpora, and colours from images of the first.

        num_points: of a cloud. colours: mean and spread that an image tower was trained with, in place of the corpus's.
        """
        first = corpora[0]
        text = TextColumn.fit_all([corpus for corpus in corpora if corpus.has_modality(Text)], learn)
        views = ViewsColumn(image_size, *(colors or color_statistics(first)))
        return cls(PointsColumn(num_points), views, text, LabelColumn.fit(first) if first.label else None)

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ObjectProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        kinds = {"points": PointsColumn, "views": ViewsColumn, "text": partial(TextColumn, tokenizer)}
        return cls(**load_columns(directory, **kinds, label=LabelColumn))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def load_example(self, corpus: Corpus, row: int) -> Example:
        return read_available_columns(self.columns, KINDS, corpus, row)

    def __call__(self, **columns: list[Any]) -> Batch:
        reject_unknown_columns(columns, ("points", "image", "views", "text"))
        batch: Batch = {}
        for name, values in columns.items():
            if name == "views":
                batch[name] = pad([self.views(list(views)) for views in values])
            else:
                batch[name] = (self.views if name == "image" else self.columns[name])(values)
        return batch
