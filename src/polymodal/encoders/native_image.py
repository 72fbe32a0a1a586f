"""Native-resolution vision transformer for images of any aspect ratio (NaViT, Dehghani et al. 2023).

The patches of all images of a batch are packed without padding (patch n' pack); positions are 2-D RoPE, so that no grid
size is learned.

Needed by: comp, mindvl, navil, sail_vl2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ROPE_THETA
from polymodal.layers.positions import rotary_angles_2d
from polymodal.layers.transformer import Packing, Transformer, mean_pool
from polymodal.modalities.image import PatchedImages


@dataclass(frozen=True)
class NativeImageEncoderConfig:
    """Configuration of the native-resolution image encoder."""

    patch_size: PositiveInt = 8
    """Side of a patch in pixels."""
    max_patches: PositiveInt = 64
    """Maximum number of patches per image; larger images are downscaled."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""

    def build(self) -> NativeImageEncoder:
        return NativeImageEncoder(self)


class NativeImageEncoder(Encoder):
    """NaViT encoder; returns packed patch tokens, their packing, and the mean of each image's tokens."""

    def __init__(self, config: NativeImageEncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.width, bias=False)
        self.norm_pre = nn.LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(
        self, image: PatchedImages
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Encode images. image: patches of the configuration's patch size."""
        packing = Packing.of(image.mask)
        x = self.norm_pre(self.patch_embedding(packing.pack(image.values)))
        size = self.config.width // self.config.num_heads
        # 2-D RoPE by row and column: any grid, no learned positions.
        angles = rotary_angles_2d(image.row, image.column, size, ROPE_THETA, x)
        x = self.norm_post(self.transformer(x, replace(packing, rotation=angles)))
        return x, packing, mean_pool(x, packing)
