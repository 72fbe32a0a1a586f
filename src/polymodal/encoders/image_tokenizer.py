"""Images to discrete codes, one a patch, and back: a convolutional VQ-VAE (van den Oord et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveInt
from polymodal.errors import UserError
from polymodal.layers.quantize import VectorQuantizer

COMMITMENT = 0.25  # beta of equation 3
STEM = 4  # pixels


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """The discrete codes of images."""

    codebook_size: PositiveInt = 256
    """Entries of the codebook."""
    codebook_dim: PositiveInt = 8
    """Dimensions in which vectors and codes are compared."""
    width: PositiveInt = 32
    """Channels of the convolutions."""

    def build(self, patch_size: int) -> ImageTokenizer:
        """patch_size: side in pixels of what a code stands for; 4, 8, 16 ..."""
        return ImageTokenizer(self, patch_size)


class ImageTokenizer(nn.Module):
    """Convolutions that halve the side until a patch is one vector, its nearest code, and the same way back.

    The first and the last one work on squares of 4 px, because all others cost most where the image is large.
    """

    def __init__(self, config: ImageTokenizerConfig, patch_size: int):
        super().__init__()
        width, halvings = config.width, round(math.log2(patch_size)) - 2
        if STEM * 2**halvings != patch_size:
            raise UserError(f"A patch of {patch_size} px is no power of 2 from {STEM} on.")
        down = [nn.Conv2d(width, width, 4, stride=2, padding=1) for _ in range(halvings)]
        up = [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1) for _ in range(halvings)]
        stem, last = nn.Conv2d(3, width, STEM, stride=STEM), nn.ConvTranspose2d(width, 3, STEM, stride=STEM)
        self.down = nn.Sequential(*(layer for one in (stem, *down) for layer in (one, nn.GELU())))
        self.to_code = nn.Conv2d(width, config.codebook_dim, 1)
        self.quantizer = VectorQuantizer(config.codebook_size, config.codebook_dim)
        self.from_code = nn.Conv2d(config.codebook_dim, width, 3, padding=1)
        self.up = nn.Sequential(*(layer for one in (*up, last) for layer in (nn.GELU(), one)))

    def _vectors(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches dim"]:
        return self.to_code(self.down(image)).flatten(2).transpose(1, 2)

    def _image(self, vectors: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch 3 size size"]:
        grid = math.isqrt(vectors.shape[1])
        return self.up(self.from_code(vectors.transpose(1, 2).unflatten(2, (grid, grid))))

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "batch 3 size size"]) -> Int[Tensor, "batch patches"]:
        """The codes of a normalized image in reading order."""
        return self.quantizer.codes(self._vectors(image))

    def decode(self, codes: Int[Tensor, "batch patches"]) -> Float[Tensor, "batch 3 size size"]:
        """The normalized image that codes stand for."""
        return self._image(self.quantizer.vectors(codes))

    def losses(self, image: Float[Tensor, "batch 3 size size"]) -> dict[str, Tensor]:
        """Mean squared error of the pixels, distance of codes to vectors, and of vectors to codes (equation 3)."""
        found = self.quantizer(self._vectors(image))
        return {
            "pixels": F.mse_loss(self._image(found.vectors), image),
            "codebook": found.codebook,
            "commitment": COMMITMENT * found.commitment,
        }
