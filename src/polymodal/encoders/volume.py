"""Scans to tokens: cubes of every contrast that is there, and one transformer over all of them (BM-MAE, Robinet et al.
2025, section 3).

Needed by: bm_mae, simcrop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.transformer import Packing, Transformer, mean_pool
from polymodal.modalities.padding import Padded


@dataclass(frozen=True)
class VolumeEncoderConfig:
    """Configuration of the volume encoder."""

    num_contrasts: PositiveInt = 4
    """Number of contrasts (MRI modalities) that a scan may have."""
    image_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (48, 56, 48)
    """Depth, height and width in voxels."""
    patch_size: PositiveInt = 8
    """Side of a cubic patch in voxels; must divide the image size."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""


class VolumeEncoder(Encoder):
    """3-D ViT: one token per cube of each contrast that is present, pooled by their mean.

    A missing contrast has no tokens: it costs nothing, and its voxels have no influence.
    """

    def __init__(self, config: VolumeEncoderConfig):
        super().__init__()
        if any(side % config.patch_size for side in config.image_size):
            raise UserError(f"Cubes of {config.patch_size} voxels do not tile a scan of {config.image_size}.")
        self.config = config
        depth, height, width = (side // config.patch_size for side in config.image_size)
        std = config.width**-0.5
        self.cube_embedding = nn.ModuleList(
            nn.Linear(config.patch_size**3, config.width) for _ in range(config.num_contrasts)
        )
        self.place = nn.Parameter(std * torch.randn(depth * height * width, config.width))
        self.contrast = nn.Parameter(std * torch.randn(config.num_contrasts, 1, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(
        self,
        voxels: Float[Tensor, "batch contrasts deep high wide"],
        present: Bool[Tensor, "batch contrasts"],
    ) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """Encode scans. voxels: standardized. present: at least one contrast of every scan. Tokens are ordered by
        contrast."""
        cubes = patchify_3d(voxels, self.config.patch_size)
        x = torch.stack([embed(cubes[:, index]) for index, embed in enumerate(self.cube_embedding)], dim=1)
        x = x + self.place + self.contrast
        # Tokens of missing contrasts are left out by the packing.
        packing = Packing.of(present[:, :, None].expand(x.shape[:3]).flatten(1))
        packed = self.norm_post(self.transformer(packing.pack(x.flatten(1, 2)), packing))
        lengths = packing.mask.sum(dim=1)
        tokens = nn.utils.rnn.pad_sequence(list(packed.split(lengths.tolist())), batch_first=True)
        return Padded(tokens, lengths), mean_pool(packed, packing)


def patchify_3d(
    voxels: Float[Tensor, "batch contrasts deep high wide"], patch_size: int
) -> Float[Tensor, "batch contrasts cubes values"]:
    """Cut into cubes, ordered depth, height, width."""
    batch, contrasts, depth, height, width = voxels.shape
    x = voxels.reshape(
        batch,
        contrasts,
        depth // patch_size,
        patch_size,
        height // patch_size,
        patch_size,
        width // patch_size,
        patch_size,
    )
    return x.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(batch, contrasts, -1, patch_size**3)
