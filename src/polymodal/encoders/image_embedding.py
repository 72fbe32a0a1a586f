"""Patch embedding with positions, pixel shuffle and MLP projector, without attention (Mono-InternVL, section 3.2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.modalities.image import patchify, unpatchify


class ImageEmbedding(nn.Module):
    """Cells of 2 x 2 patches to visual tokens."""

    def __init__(self, patch_size: int, tokens_per_tile: int, patch_embed_dim: int, width: int):
        """patch_size: in pixels. patch_embed_dim, width: channels of a patch, and of a token."""
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Linear(3 * patch_size**2, patch_embed_dim)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens_per_tile, 4, patch_embed_dim))
        last = nn.Linear(width, width)
        self.project = nn.Sequential(
            nn.LayerNorm(4 * patch_embed_dim), nn.Linear(4 * patch_embed_dim, width), nn.GELU(), last
        )
        nn.init.normal_(last.weight, std=0.02)  # as short as token embeddings, or the blocks would hardly change them
        nn.init.zeros_(last.bias)

    def forward(self, cells: Float[Tensor, "places values"]) -> Float[Tensor, "places width"]:
        """cells: the normalized pixels of whole tiles, one after the other, row-major."""
        # A patch embedding is a convolution with kernel = stride = patch_size; the patches of a cell are row-major.
        four = patchify(unpatchify(cells[:, None], 2 * self.patch_size), self.patch_size)
        placed = self.patches(four).unflatten(0, (-1, len(self.positions))) + self.positions
        return self.project(placed.flatten(2).flatten(0, 1))
