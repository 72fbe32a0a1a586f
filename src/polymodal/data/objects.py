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
    AsItIsColumn,
    ColumnsProcessor,
    ImageColumn,
    LabelColumn,
    PlainColumn,
    TextColumn,
    colour_statistics,
    load_columns,
    read_there,
    refuse_others,
)
from polymodal.errors import UnreadableExample
from polymodal.modalities import Category, Image, Images, Points, Text, ViewCaptions
from polymodal.modalities.image import to_square
from polymodal.modalities.padding import pad
from polymodal.modalities.points import normalised, some_points, with_colour
from polymodal.modalities.text import Tokenizer
from polymodal.types import Batch, Example


@dataclass(frozen=True)
class PointsColumn(PlainColumn):
    """Clouds of so many points, centred in the unit sphere, with colours."""

    count: int

    def read(self, corpus: Corpus, row: int) -> Float[np.ndarray, "points 6"]:
        """All points that there are. Raises UnreadableExample for a cloud without points."""
        return self.prepared(corpus.value(row, corpus.column_of(Points)))

    def prepared(self, points: np.ndarray) -> Float[np.ndarray, "points 6"]:
        if not len(points) or points.shape[1] < 3:
            raise UnreadableExample("there are no points")
        return np.concatenate([normalised(points[:, :3]), with_colour(points)[:, 3:]], axis=1).astype(np.float32)

    def __call__(self, clouds: list[Any]) -> Float[Tensor, "batch points 6"]:
        """clouds: arrays with a line a point: x, y (up), z, and red, green and blue from 0 to 1 where there are any."""
        prepared = [self.prepared(np.asarray(cloud, dtype=np.float32)) for cloud in clouds]
        return torch.from_numpy(np.stack([some_points(cloud, self.count) for cloud in prepared]))


class ViewsColumn(ImageColumn):
    """All pictures of a thing, as squares of one size."""

    def read(self, corpus: Corpus, row: int) -> np.ndarray:
        """uint8 views x size x size x 3; the picture itself where an example has a single one."""
        if not corpus.holds(Images):
            return super().read(corpus, row)[None]
        return np.stack(
            [to_square(one, self.size, self.stretch) for one in corpus.value(row, corpus.column_of(Images))]
        )


class ViewCaptionsColumn(AsItIsColumn):
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

    Batches are made of points, texts, single pictures (`image`), and `views`, which are all pictures of each thing.
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
        points: int,
        image_size: int,
        learn: Callable[[Iterable[str]], Tokenizer],
        colours: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> ObjectProcessor:
        """Learn a tokenizer from captions of all corpora, and colours from pictures of the first.

        points: of a cloud. colours: mean and spread that an image tower was trained with, in place of the corpus's.
        """
        first = corpora[0]
        text = TextColumn.fit_all([corpus for corpus in corpora if corpus.holds(Text)], learn)
        views = ViewsColumn(image_size, *(colours or colour_statistics(first)))
        return cls(PointsColumn(points), views, text, LabelColumn.fit(first) if first.label else None)

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ObjectProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        kinds = {"points": PointsColumn, "views": ViewsColumn, "text": partial(TextColumn, tokenizer)}
        return cls(**load_columns(directory, **kinds, label=LabelColumn))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def read(self, corpus: Corpus, row: int) -> Example:
        return read_there(self.columns, KINDS, corpus, row)

    def __call__(self, **columns: list[Any]) -> Batch:
        refuse_others(columns, ("points", "image", "views", "text"))
        batch: Batch = {}
        for name, values in columns.items():
            if name == "views":
                batch[name] = pad([self.views(list(views)) for views in values])
            else:
                batch[name] = (self.views if name == "image" else self.columns[name])(values)
        return batch
