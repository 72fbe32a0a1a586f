"""Pictures and captions to tensors, for every recipe that needs the two."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora import Corpus
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image, Text
from polymodal.modalities.image import to_square
from polymodal.modalities.text import Caption, Tokenizer
from polymodal.types import Batch, Example

MOST_ROWS, DRAWS = 200_000, 8  # that a vocabulary is learned on; captions drawn of each


class ImageTextProcessor:
    """Reads examples as `{"image": uint8 array, "text": captions}` and makes batches of them without augmentation."""

    def __init__(
        self,
        image_size: int,
        tokenizer: Tokenizer,
        language_shares: dict[str, float] | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ):
        """mean, std: of the red, green and blue values on the scale 0-1, which `normalise` takes to 0 and 1."""
        self.image_size = image_size
        self.tokenizer = tokenizer
        self.text = Text(language_shares or {})
        self.mean, self.std = tuple(mean), tuple(std)

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        image_size: int,
        learn: Callable[[Iterable[str]], Tokenizer],
        colours: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> ImageTextProcessor:
        """Learn a tokenizer from captions of the training split, and the mean and spread of its colours.

        colours: mean and spread that an image tower was trained with, in place of the corpus's.
        """
        column = corpus.column_of(Text)
        modality = corpus.columns[column]
        assert isinstance(modality, Text)
        rows = corpus.raw_values(corpus.sample("train", MOST_ROWS), column)
        tokenizer = learn(_drawn(rows, modality))
        return cls(image_size, tokenizer, dict(modality.language_shares), *(colours or colour_statistics(corpus)))

    def read(self, corpus: Corpus, row: int) -> Example:
        """One example, decoded and resized. Raises UnreadableExample."""
        picture = corpus.value(row, corpus.column_of(Image))
        return {
            "image": to_square(picture, self.image_size),
            "text": corpus.value(row, corpus.column_of(Text)),
        }

    def draw(self, captions: list[Caption], rng: np.random.Generator) -> str:
        """One caption at random, languages by the corpus's shares."""
        return self.text.choose(captions, rng)

    def __call__(self, **columns: list[Any]) -> Batch:
        """image: arrays from `read`, Pillow pictures, paths or encoded bytes. text: strings."""
        batch: Batch = {}
        if "image" in columns:
            batch["image"] = self.normalise(self.pixels(columns["image"]))
        if "text" in columns:
            batch["text"] = self.tokenizer(columns["text"])
        return batch

    def pixels(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """Values on the scale 0-1."""
        arrays = [image if isinstance(image, np.ndarray) else self._open(image) for image in images]
        return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]).float().div_(255)

    def normalise(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Scale 0-1 to mean 0 and standard deviation 1 over the training pictures."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return torch.addcmul(-mean / std, pixels, 1 / std)

    def _open(self, image: PILImage.Image | Path | str | bytes) -> np.ndarray:
        return to_square(Image().decode(str(image) if isinstance(image, Path) else image), self.image_size)

    def save(self, directory: Path) -> None:
        self.tokenizer.save(directory)
        settings = {
            "image_size": self.image_size,
            "language_shares": dict(self.text.language_shares),
            "mean": self.mean,
            "std": self.std,
        }
        (directory / "processor.json").write_text(json.dumps(settings, indent=2))

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ImageTextProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        settings = json.loads((directory / "processor.json").read_text())
        return cls(settings["image_size"], tokenizer, *(settings[name] for name in ("language_shares", "mean", "std")))


def colour_statistics(corpus: Corpus, sample: int = 500) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of red, green and blue on the scale 0-1, over evenly chosen training pictures.

    Pictures on white, on black and photographs differ too much for one data set's figures to suit all.
    """
    column = corpus.column_of(Image)
    pictures = []
    for row in corpus.sample("train", sample):
        with contextlib.suppress(UnreadableExample):  # the loader counts and names them
            pictures.append(to_square(corpus.value(row, column), 16))
    if not pictures:
        return [0.5] * 3, [0.5] * 3
    values = np.stack(pictures).reshape(-1, 3) / 255
    return values.mean(0).round(4).tolist(), values.std(0).clip(min=0.05).round(4).tolist()


def _drawn(rows: list[Any], modality: Text) -> Iterator[str]:
    """Captions as often as training will draw them, or rare languages would take the vocabulary of frequent ones."""
    rng = np.random.default_rng(0)
    for row in rows:
        with contextlib.suppress(UnreadableExample):
            captions = modality.decode(row)
            yield from (modality.choose(captions, rng) for _ in captions[:DRAWS])
