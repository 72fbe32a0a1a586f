"""Images of an object from several sides, and a caption of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column, PassThroughColumn
from polymodal.data.columns.image import ImageColumn, color_statistics
from polymodal.errors import UserError
from polymodal.modalities import Image, Images, ViewCaptions
from polymodal.modalities.image import to_square
from polymodal.modalities.padding import Padded, pad
from polymodal.modalities.view_caption import ViewCaption
from polymodal.rng import ExampleRNG


class ViewsColumn(ImageColumn):
    """All views of an object as square images."""

    reads: ClassVar[tuple[type, ...]] = (Images, Image)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> ViewsColumn:
        """Compute the color statistics of the views themselves."""
        if self.mean:
            return self
        corpus = next((corpus for corpus in corpora if self.available([corpus])), corpora[0])
        mean, std = color_statistics(corpus, kinds=self.reads)
        return dataclasses.replace(self, mean=mean, std=std)

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        """Load uint8 views x size x size x 3; a corpus of single images gives one view."""
        if not corpus.has_modality(Images):
            return super().load(corpus, row)[None]
        return np.stack(
            [to_square(one, self.size, self.stretch) for one in corpus.value(row, corpus.column_with(Images))]
        )

    def __call__(self, things: list[Any]) -> Padded:  # type: ignore[override]
        """things: the views of each object, as `images` takes them."""
        return pad([self.images(list(views)) for views in things])

    def sample(self, things: list[Any], example_rng: ExampleRNG) -> list[np.ndarray]:
        """Sample one of the loaded views of each object."""
        return [views[rng.integers(len(views))] for views, rng in zip(things, example_rng.generators, strict=True)]

    def images(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """Collate one image of each object: arrays, Pillow images, paths or encoded bytes."""
        return super().__call__(images)


class ViewCaptionsColumn(PassThroughColumn):
    """Captions of each view, the best first."""

    reads = (ViewCaptions,)

    def sample(
        self, captions: Sequence[ViewCaption], views: Sequence[int], count: int, rng: np.random.Generator
    ) -> tuple[int, list[str]]:
        """Sample one of the given views that has captions, or any that has; return it with its `count` best captions.

        Captions repeat where a view has fewer. Raises UserError where no view has any.
        """
        described = sorted({caption.view for caption in captions})
        if not described:
            raise UserError("A training example has no captions of its views; polymodal caption writes them.")
        candidates = [view for view in views if view in described] or described
        view = candidates[int(rng.integers(len(candidates)))]
        best = [caption.text for caption in captions if caption.view == view][:count]
        return view, [best[number % len(best)] for number in range(count)]
