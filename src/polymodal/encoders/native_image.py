"""Pictures of any shape to tokens: a vision transformer at their own resolution (NaViT, Dehghani et al. 2023).

The patches of all pictures of a batch are packed, so that none is padded; where a patch stands turns queries and keys
(RoPE of rows and columns), so that no size of a grid is learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ROTARY_BASE
from polymodal.layers.positions import rotary_angles_2d
from polymodal.layers.transformer import Packing, Transformer, mean_of_tokens
from polymodal.modalities.image import PatchedImages
from polymodal.ranges import Count, Whole


@dataclass(frozen=True)
class NativeImageEncoderConfig:
    """The image tower for pictures of any shape."""

    patch: Count = 8
    """Side of a patch in pixels."""
    most: Count = 64
    """Patches of a picture at most; larger pictures are made smaller."""
    width: Count = 64
    """Channels of every token."""
    depth: Whole = 2
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads of a block."""

    def build(self) -> NativeImageEncoder:
        return NativeImageEncoder(self)


class NativeImageEncoder(Encoder):
    """Its output has the tokens packed, with their packing, and the mean of each picture's."""

    def __init__(self, config: NativeImageEncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch**2, config.width, bias=False)
        self.norm_before = nn.LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.norm_after = nn.LayerNorm(config.width)

    def forward(
        self, image: PatchedImages
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """image: of patches of the configuration's size."""
        packing = Packing.of(image.mask)
        x = self.norm_before(self.patch_embedding(packing.pack(image.values)))
        size = self.config.width // self.config.heads
        angles = rotary_angles_2d(image.row, image.column, size, ROTARY_BASE, x)
        x = self.norm_after(self.transformer(x, replace(packing, rotation=angles)))
        return x, packing, mean_of_tokens(x, packing)
