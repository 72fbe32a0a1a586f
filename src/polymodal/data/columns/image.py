"""Square images, and the mean and standard deviation of their colors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image, Video
from polymodal.modalities.image import to_square
from polymodal.modalities.image_augmentation import ImageAugmentation, augment, may_flip
from polymodal.modalities.text import Caption
from polymodal.modalities.video import Clip
from polymodal.rng import ExampleRNG


@dataclass(frozen=True)
class ImageColumn(BaseColumn):
    """Square images.

    size: side in pixels. mean, std: of red, green and blue on the scale 0-1, for normalization; learned from the
    training images if empty. stretch: resize to the square without keeping the aspect ratio, instead of a center crop.
    """

    reads: ClassVar[tuple[type, ...]] = (Image,)
    size: int
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    stretch: bool = False

    @classmethod
    def of(cls, size: int, colors: tuple[Sequence[float], Sequence[float]] | None) -> ImageColumn:
        """colors: mean and standard deviation of an image encoder's training; learned from the corpus without."""
        return cls(size, *colors) if colors else cls(size)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> ImageColumn:
        if self.mean:
            return self
        mean, std = color_statistics(corpora[0])
        return dataclasses.replace(self, mean=mean, std=std)

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        image = corpus.value(row, corpus.column_with(Image), min_side=2 * self.size)
        return to_square(image, self.size, self.stretch)

    def __call__(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """images: arrays (height x width x 3, uint8) of any size, Pillow images, paths or encoded bytes."""
        return self.normalize(self.pixels(images))

    def pixels(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """Values on the scale 0-1."""
        arrays = [image if self._is_loaded(image) else self._open(image) for image in images]
        return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]).float().div_(255)

    def normalize(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Normalize values on the scale 0-1 to mean 0 and standard deviation 1 over the training images."""
        return normalize_pixels(pixels, self.mean, self.std)

    def augmented(
        self,
        images: list[Any],
        augmentation: ImageAugmentation,
        example_rng: ExampleRNG,
        captions: Sequence[list[Caption]] | None = None,
        rate: float = 1.0,
    ) -> Float[Tensor, "batch 3 size size"]:
        """Augment images for training, and normalize them.

        captions: of each image, which a flip must not contradict ("left", "right"). rate: fraction of the images that
        are augmented.
        """
        (pixels,) = self.views(images, [augmentation], example_rng, captions)
        if rate < 1:
            is_plain = (example_rng.uniform() < 1 - rate)[:, None, None, None]
            pixels = torch.where(is_plain, self.normalize(self.pixels(images)), pixels)
        return pixels

    def views(
        self,
        images: list[Any],
        augmentations: Sequence[ImageAugmentation],
        example_rng: ExampleRNG,
        captions: Sequence[list[Caption]] | None = None,
    ) -> list[Float[Tensor, "batch 3 size size"]]:
        """Augment the images by each of these, one after the other, as `augmented` does."""
        pixels, flip = self.pixels(images), None if captions is None else may_flip(captions)
        return [self.normalize(augment(pixels, one, example_rng, flip)) for one in augmentations]

    def shown(self, normalized: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Undo `normalize`: values on the scale 0-1, to plot."""
        return denormalize_pixels(normalized, self.mean, self.std)

    def _is_loaded(self, image: Any) -> bool:
        shape = (self.size, self.size, 3)
        return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == shape

    def _open(self, image: Any) -> np.ndarray:
        opened = Image().decode(str(image) if isinstance(image, Path) else image, min_side=2 * self.size)
        return to_square(opened, self.size, self.stretch)


def normalize_pixels(
    pixels: Float[Tensor, "batch 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """Normalize values on the scale 0-1 to mean 0 and standard deviation 1 per color."""
    center, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return torch.addcmul(-center / spread, pixels, 1 / spread)


def denormalize_pixels(
    pixels: Float[Tensor, "batch 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """Undo `normalize_pixels`, clamped to the scale 0-1."""
    center, spread = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels * spread + center).clamp(0, 1)


def color_statistics(
    corpus: Corpus, sample: int = 500, kinds: Sequence[type] = (Video, Image)
) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of red, green and blue on the scale 0-1 over a sample of the training images.

    A corpus with clips counts the first frame of each, one with several images of an object one of them. They are
    computed for each corpus, because drawings on white, on black, and photographs differ too much for the statistics of
    one data set. kinds: modalities to look for, in this order.
    """
    column = corpus.column_with(next((kind for kind in kinds if corpus.has_modality(kind)), kinds[-1]))
    images = []
    for row in corpus.sample("train", sample):
        with contextlib.suppress(UnreadableExample):  # the loader counts and names them
            value = corpus.value(row, column)
            value = value[row % len(value)] if isinstance(value, list) else value
            image = PILImage.fromarray(value.frames[0]) if isinstance(value, Clip) else value
            images.append(to_square(image, 16))
    if not images:
        return [0.5] * 3, [0.5] * 3
    values = np.stack(images).reshape(-1, 3) / 255
    return values.mean(0).round(4).tolist(), values.std(0).clip(min=0.05).round(4).tolist()
