"""Images and captions to tensors, for every recipe that needs the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import ColumnsProcessor, ImageColumn, TextColumn, load_columns
from polymodal.modalities.text import Caption, Tokenizer


class ImageTextProcessor(ColumnsProcessor):
    """Reads examples as `{"image": uint8 array, "text": captions}` and makes batches of them without augmentation."""

    def __init__(self, image: ImageColumn, text: TextColumn):
        super().__init__(image=image, text=text)
        self.image = image
        self.text = text

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        image_size: int,
        learn: Callable[[Iterable[str]], Tokenizer],
        colors: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> ImageTextProcessor:
        """Learn a tokenizer from captions of the training split, and the mean and spread of its colours.

        colours: mean and spread that an image tower was trained with, in place of the corpus's.
        """
        text = TextColumn.fit(corpus, learn)
        return cls(ImageColumn.fit(corpus, image_size, colors), text)

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ImageTextProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        return cls(**load_columns(directory, image=ImageColumn, text=partial(TextColumn, tokenizer)))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def sample_caption(self, captions: list[Caption], rng: np.random.Generator) -> str:
        """One caption at random, languages by the corpus's shares."""
        return self.text.sample_caption(captions, rng)

    def pixels(self, images: list[np.ndarray]) -> Float[Tensor, "batch 3 size size"]:
        """Values on the scale 0-1."""
        return self.image.pixels(images)

    def normalize(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Scale 0-1 to mean 0 and standard deviation 1 over the training images."""
        return self.image.normalize(pixels)
