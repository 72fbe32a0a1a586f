"""Swin transformer (Liu et al. 2021): an image encoder whose stages halve the resolution and double the width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import DecayRate, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.swin import FeatureMap, PatchMerging, SwinBlock
from polymodal.layers.transformer import drop_path_schedule


@dataclass(frozen=True)
class SwinEncoderConfig:
    """Configuration of a Swin transformer."""

    image_size: PositiveInt = 64
    """Side of the square input image in pixels."""
    patch_size: PositiveInt = 4
    """Side of a patch in pixels."""
    width: PositiveInt = 32
    """Channels of the first stage; each further stage has twice as many."""
    depths: tuple[PositiveInt, ...] = (1, 2, 2)
    """Blocks of each stage."""
    num_heads: tuple[PositiveInt, ...] = (2, 4, 8)
    """Attention heads of each stage."""
    window: PositiveInt = 4
    """Tokens along a side of a window."""
    drop_path_rate: DecayRate = 0.0
    """Drop path rate of the last block; rates increase linearly from 0."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads):
            raise UserError("A Swin transformer has one depth and one number of heads for each stage.")

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        return [self.width * 2**stage for stage in range(len(self.depths))]

    @property
    def strides(self) -> list[int]:
        """Pixels of a token's side in each stage."""
        return [self.patch_size * 2**stage for stage in range(len(self.depths))]

    def build(self) -> SwinEncoder:
        return SwinEncoder(self)


class SwinEncoder(Encoder):
    """Swin transformer; returns the tokens of the last stage in row-major order, and their mean."""

    def __init__(self, config: SwinEncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.norm_pre = nn.LayerNorm(config.width)
        rates = iter(drop_path_schedule(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(width, heads, config.window, number % 2 == 1, next(rates)) for number in range(depth)
            )
            for width, heads, depth in zip(config.widths, config.num_heads, config.depths, strict=True)
        )
        self.merging = nn.ModuleList(PatchMerging(width) for width in config.widths[:-1])
        self.norm_post = nn.LayerNorm(config.widths[-1])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.5 * module.in_features**-0.5)  # 0.02 at a width of 625
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def blocks(self) -> list[list[SwinBlock]]:
        """The blocks of each stage."""
        return [list(cast(Any, stage)) for stage in self.stages]

    def embedded(self, image: Float[Tensor, "batch 3 _ _"]) -> FeatureMap:
        """Return the patches, the input of the first stage."""
        return self.norm_pre(self.patch_embedding(image).permute(0, 2, 3, 1))

    def forward(
        self, image: Float[Tensor, "batch 3 size size"], window: int | None = None
    ) -> tuple[Float[Tensor, "batch patches width"], Float[Tensor, "batch width"]]:
        """Encode images of any size. window: by default the configured one; tables of relative positions follow it."""
        x = self.embedded(image)
        for number, blocks in enumerate(self.blocks):
            x = self.merging[number - 1](x) if number else x
            for block in blocks:
                x = block(x, window)
        tokens = self.norm_post(x).flatten(1, 2)
        return tokens, tokens.mean(1)
