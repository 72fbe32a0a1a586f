"""Image tokenizer: convolutional VQ-VAE from images to discrete codes and back (van den Oord et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveInt
from polymodal.errors import UserError
from polymodal.layers.quantize import VectorQuantizer

COMMITMENT = 0.25  # beta of equation 3
STEM = 4  # stride of the first and last convolution in pixels


class TokenizerBatch(TypedDict):
    """What an image tokenizer learns from."""

    image: Float[Tensor, "batch 3 size size"]


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Configuration of the image tokenizer."""

    codebook_size: PositiveInt = 256
    """Number of codebook entries."""
    codebook_dim: PositiveInt = 8
    """Dimension of codebook vectors."""
    width: PositiveInt = 32
    """Channels of the convolutions."""

    def build(self, patch_size: int) -> ImageTokenizer:
        """Build the tokenizer. patch_size: side in pixels of the patch that a code represents: 4, 8, 16 ..."""
        return ImageTokenizer(self, patch_size)


class ImageTokenizer(nn.Module):
    """Strided convolutions to one vector per patch, vector quantization, and transposed convolutions back.

    The first and last convolution have stride 4, since full-resolution layers cost most.
    """

    def __init__(self, config: ImageTokenizerConfig, patch_size: int):
        super().__init__()
        width, halvings = config.width, round(math.log2(patch_size)) - 2
        if STEM * 2**halvings != patch_size:
            raise UserError(f"The patch size must be a power of 2 and at least {STEM} px, not {patch_size}.")
        down = [nn.Conv2d(width, width, 4, stride=2, padding=1) for _ in range(halvings)]
        up = [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1) for _ in range(halvings)]
        stem, last = nn.Conv2d(3, width, STEM, stride=STEM), nn.ConvTranspose2d(width, 3, STEM, stride=STEM)
        self.down = nn.Sequential(*(layer for conv in (stem, *down) for layer in (conv, nn.GELU())))
        self.to_code = nn.Conv2d(width, config.codebook_dim, 1)
        self.quantizer = VectorQuantizer(config.codebook_size, config.codebook_dim)
        self.from_code = nn.Conv2d(config.codebook_dim, width, 3, padding=1)
        self.up = nn.Sequential(*(layer for conv in (*up, last) for layer in (nn.GELU(), conv)))

    def _vectors(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches dim"]:
        return self.to_code(self.down(image)).flatten(2).transpose(1, 2)

    def _image(self, vectors: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch 3 size size"]:
        grid = math.isqrt(vectors.shape[1])
        return self.up(self.from_code(vectors.transpose(1, 2).unflatten(2, (grid, grid))))

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "batch 3 size size"]) -> Int[Tensor, "batch patches"]:
        """Return the codes of normalized images, row-major."""
        return self.quantizer.codes(self._vectors(image))

    def decode(self, codes: Int[Tensor, "batch patches"]) -> Float[Tensor, "batch 3 size size"]:
        """Return the normalized images of codes."""
        return self._image(self.quantizer.vectors(codes))

    def losses(self, image: Float[Tensor, "batch 3 size size"]) -> dict[str, Tensor]:
        """Return pixel MSE, codebook loss and commitment loss (equation 3)."""
        quantized = self.quantizer(self._vectors(image))
        return {
            "pixels": F.mse_loss(self._image(quantized.vectors), image),
            "codebook": quantized.codebook,
            "commitment": COMMITMENT * quantized.commitment,
        }
