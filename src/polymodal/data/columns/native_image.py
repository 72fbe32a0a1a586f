"""Images at native resolution: whole patches of the image's own aspect ratio (NaViT, AIMv2)."""

from __future__ import annotations

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
from polymodal.data.columns.image import ImageColumn, color_statistics, normalize_pixels
from polymodal.modalities import Image
from polymodal.modalities.image import PatchedImages, to_patch_grid
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.rng import ExampleRNG
from polymodal.types import Example


@dataclass(frozen=True)
class NativeImageColumn(BaseColumn):
    """Images as patches of a grid of their aspect ratio.

    patch_size: side of a patch in pixels. max_patches: larger images are scaled down. mean, std: of red, green and blue
    on the scale 0-1, for normalization; learned from the training images if empty.
    """

    reads: ClassVar[tuple[type, ...]] = (Image,)
    patch_size: int
    max_patches: int
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> NativeImageColumn:
        if self.mean:
            return self
        mean, std = color_statistics(corpora[0])
        return dataclasses.replace(self, mean=mean, std=std)

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        return to_patch_grid(corpus.value(row, corpus.column_with(Image)), self.patch_size, self.max_patches)

    def __call__(self, images: list[Any]) -> PatchedImages:
        return self.scaled(images, [self.max_patches] * len(images))

    def scaled(self, images: list[Any], areas: Sequence[int]) -> PatchedImages:
        """Collate images scaled down to at most so many patches each.

        images: arrays (height x width x 3, uint8), Pillow images, paths or encoded bytes.
        """
        grids = [
            to_patch_grid(self._opened(image), self.patch_size, min(area, self.max_patches))
            for image, area in zip(images, areas, strict=True)
        ]
        pixels = [torch.from_numpy(grid).permute(2, 0, 1)[None].float().div_(255) for grid in grids]
        return PatchedImages.of([normalize_pixels(one, self.mean, self.std)[0] for one in pixels], self.patch_size)

    def _opened(self, image: Any) -> PILImage.Image:
        return Image().decode(str(image) if isinstance(image, Path) else image)


def native_areas(uniform: Float[Tensor, " batch"], low: float, high: float) -> list[int]:
    """Return 2^n patches, n from a standard normal truncated to [-1, 1] and mapped to [low, high] (AIMv2,
    section 3.4).

    uniform: numbers in [0, 1).
    """
    below, above = torch.special.ndtr(torch.tensor([-1.0, 1.0]))
    normal = torch.special.ndtri(below + uniform * (above - below))
    return (2 ** (low + (normal + 1) / 2 * (high - low))).round().long().tolist()


def training_images(
    column: ImageColumn | NativeImageColumn,
    examples: Sequence[Example],
    augmentation: ImageAugmentation,
    native_area: tuple[float, float],
    example_rng: ExampleRNG,
) -> Float[Tensor, "batch 3 size size"] | PatchedImages:
    """Return images of a number of patches that is sampled for each (`native_areas`), or augmented ones of one size."""
    images = [example["image"] for example in examples]
    if isinstance(column, NativeImageColumn):
        return column.scaled(images, native_areas(example_rng.uniform(), *native_area))
    return column.augmented(images, augmentation, example_rng, [example.get("text", []) for example in examples])
