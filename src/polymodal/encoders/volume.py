"""Scans to tokens: cubes of every contrast that is there, and one transformer over all of them (BM-MAE, Robinet et al.
2025, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.transformer import Packing, Transformer, mean_of_tokens
from polymodal.modalities.padding import Padded
from polymodal.ranges import Count, Whole


@dataclass(frozen=True)
class VolumeEncoderConfig:
    """The tower of scans."""

    contrasts: Count = 4
    """Contrasts that a scan may have."""
    size: tuple[Count, Count, Count] = (48, 56, 48)
    """Depth, height and width in voxels."""
    patch: Count = 8
    """Side of a cube in voxels; must divide the size."""
    width: Count = 64
    """Channels of every token."""
    depth: Whole = 2
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads of a block."""


class VolumeEncoder(Encoder):
    """One token a cube of each contrast that is there, and the pooled vector: their mean.

    A missing contrast has no tokens: nothing is computed for it, and its voxels have no influence.
    """

    def __init__(self, config: VolumeEncoderConfig):
        super().__init__()
        if any(side % config.patch for side in config.size):
            raise UserError(f"Cubes of {config.patch} voxels do not tile a scan of {config.size}.")
        self.config = config
        depth, height, width = (side // config.patch for side in config.size)
        std = config.width**-0.5
        self.cube_embedding = nn.ModuleList(nn.Linear(config.patch**3, config.width) for _ in range(config.contrasts))
        self.place = nn.Parameter(std * torch.randn(depth * height * width, config.width))
        self.contrast = nn.Parameter(std * torch.randn(config.contrasts, 1, config.width))
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.norm_after = nn.LayerNorm(config.width)

    def forward(
        self,
        voxels: Float[Tensor, "batch contrasts deep high wide"],
        present: Bool[Tensor, "batch contrasts"],
    ) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """voxels: standardised. present: at least one contrast of every scan. Tokens of contrasts follow each other."""
        cubes = cubify(voxels, self.config.patch)
        x = torch.stack([embed(cubes[:, place]) for place, embed in enumerate(self.cube_embedding)], dim=1)
        x = x + self.place + self.contrast
        packing = Packing.of(present[:, :, None].expand(x.shape[:3]).flatten(1))
        packed = self.norm_after(self.transformer(packing.pack(x.flatten(1, 2)), packing))
        lengths = packing.mask.sum(dim=1)
        tokens = nn.utils.rnn.pad_sequence(list(packed.split(lengths.tolist())), batch_first=True)
        return Padded(tokens, lengths), mean_of_tokens(packed, packing)


def cubify(
    voxels: Float[Tensor, "batch contrasts deep high wide"], patch: int
) -> Float[Tensor, "batch contrasts cubes values"]:
    """Cut into cubes, ordered depth, height, width."""
    batch, contrasts, depth, height, width = voxels.shape
    x = voxels.reshape(batch, contrasts, depth // patch, patch, height // patch, patch, width // patch, patch)
    return x.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(batch, contrasts, -1, patch**3)
