"""Images of an object from several sides, and a caption of each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import PassThroughColumn
from polymodal.data.columns.image import ImageColumn
from polymodal.modalities import Image, Images, ViewCaptions
from polymodal.modalities.image import to_square
from polymodal.modalities.padding import Padded, pad


class ViewsColumn(ImageColumn):
    """All views of an object as square images."""

    reads: ClassVar[tuple[type, ...]] = (Images, Image)

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

    def images(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """Collate one image of each object: arrays, Pillow images, paths or encoded bytes."""
        return super().__call__(images)


class ViewCaptionsColumn(PassThroughColumn):
    """Captions of each view, the best first."""

    reads = (ViewCaptions,)
