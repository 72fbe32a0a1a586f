"""Images of any aspect ratio, cut into tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.data.columns.image import color_statistics, denormalize_pixels, normalize_pixels
from polymodal.modalities import Image
from polymodal.modalities.image import check_tiles, from_pixels, patchify, tiles, to_rgb, unpatchify


@dataclass(frozen=True)
class TiledImageColumn(BaseColumn):
    """Images of any aspect ratio, cut into tiles when a batch is made.

    tile_size: side of a tile in pixels. token_size: side in pixels of the square behind one token. max_tiles: of an
    image, unless the caller sets another limit. largest: larger images are scaled down to this longest side in pixels.
    mean, std: of red, green and blue on the scale 0-1, for normalization. pretrained: whether these are those of a
    pretrained encoder, which stay.
    """

    reads = (Image,)
    tile_size: int
    token_size: int
    max_tiles: int
    largest: int
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    pretrained: bool = False

    def __post_init__(self) -> None:
        check_tiles(self.token_size, self.tile_size)

    @property
    def tokens_per_tile(self) -> int:
        """Return the number of tokens of a tile."""
        return (self.tile_size // self.token_size) ** 2

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> TiledImageColumn:
        """Learn mean and standard deviation of the first corpus's colors; unchanged without images or if pretrained."""
        if self.pretrained or not corpora[0].has_modality(Image):
            return self
        mean, std = color_statistics(corpora[0])
        return dataclasses.replace(self, mean=mean, std=std)

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        return self.open(corpus.value(row, corpus.column_with(Image), min_side=self.largest))

    def open(self, image: PILImage.Image | np.ndarray | Path | str | bytes) -> np.ndarray:
        """Decode to uint8 height x width x 3, scaled down to `largest`."""
        if isinstance(image, np.ndarray) and image.ndim == 3 and max(image.shape[:2]) <= self.largest:
            return np.asarray(to_rgb(from_pixels(image)))
        opened = to_rgb(Image().decode(str(image) if isinstance(image, Path) else image, min_side=self.largest))
        opened.thumbnail((self.largest, self.largest), PILImage.Resampling.BICUBIC)
        return np.asarray(opened)

    def patchify_tiles(self, image: np.ndarray, max_tiles: int | None) -> Float[Tensor, "places values"]:
        """Return the normalized pixels of every token, tile by tile."""
        cut = tiles(image, self.tile_size, self.max_tiles if max_tiles is None else max_tiles)
        pixels = torch.from_numpy(cut.copy()).permute(0, 3, 1, 2).float().div_(255)
        return patchify(normalize_pixels(pixels, self.mean, self.std), self.token_size).flatten(0, 1)

    def single_tiles(self, images: Sequence[np.ndarray]) -> Float[Tensor, "images 3 size size"]:
        """Return the normalized pixels of images as one tile each; of a white one without images."""
        white = np.full((self.tile_size, self.tile_size, 3), 255, np.uint8)
        cells = torch.stack([self.patchify_tiles(image, 1) for image in images or [white]])
        return unpatchify(cells, self.token_size)

    def __call__(self, images: list[Any]) -> list[np.ndarray]:
        return [self.open(image) for image in images]

    def shown(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Undo the normalization: pixels on the scale 0-1, to plot."""
        return denormalize_pixels(pixels, self.mean, self.std)
