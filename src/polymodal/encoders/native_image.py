"""Images of any shape to tokens: a vision transformer at their own resolution (NaViT, Dehghani et al. 2023).

The patches of all images of a batch are packed, so that none is padded; where a patch stands turns queries and keys
(RoPE of rows and columns), so that no size of a grid is learned.

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
    """The image tower for images of any shape."""

    patch_size: PositiveInt = 8
    """Side of a patch in pixels."""
    max_patches: PositiveInt = 64
    """Patches of an image at most; larger images are made smaller."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""

    def build(self) -> NativeImageEncoder:
        return NativeImageEncoder(self)


class NativeImageEncoder(Encoder):
    """Its output has the tokens packed, with their packing, and the mean of each image's."""

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
        """image: of patches of the configuration's size."""
        packing = Packing.of(image.mask)
        x = self.norm_pre(self.patch_embedding(packing.pack(image.values)))
        size = self.config.width // self.config.num_heads
        angles = rotary_angles_2d(image.row, image.column, size, ROPE_THETA, x)
        x = self.norm_post(self.transformer(x, replace(packing, rotation=angles)))
        return x, packing, mean_pool(x, packing)
