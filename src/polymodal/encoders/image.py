"""Images to tokens: the vision transformer (Dosovitskiy et al. 2021) as CLIP uses it, also behind convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.positions import rotary_angles_2d, sine_positions_2d
from polymodal.layers.transformer import Packing, QueryRows, Transformer
from polymodal.modalities.image import check_tiles, patchify

ROPE_THETA = 100.0  # of the wave lengths, as in DINOv3; grids are short


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The image tower."""

    image_size: PositiveInt = 32
    """Side of the square input image in pixels."""
    patch_size: PositiveInt = 8
    """Side of a patch in pixels; must divide the size."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    stem: tuple[PositiveInt, ...] = ()
    """Channels of 3 x 3 convolutions of stride 2 in front of the patches (Xiao et al. 2021); without, patches are cut
    out of the pixels."""
    pool_type: Literal["avg", "max", "cls"] = "avg"
    """Image vector: mean or maximum over patches, or a learned class token."""
    pos_embed: Literal["learned", "sine", "rotary"] = "learned"
    """Places: learned vectors, fixed sines and cosines of row and column, or queries and keys turned by them (RoPE)."""
    registers: NonNegativeInt = 0
    """Further tokens that are read by nobody after the last block (Darcet et al. 2024)."""

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and spread of red, green and blue (0-1) that images are normalized with; None: the corpus's own."""
        return None

    def build(self) -> Encoder:
        return ImageEncoder(self)


class ImageEncoder(Encoder):
    """A vision transformer; its output has one token a patch, in reading order, and the pooled vector."""

    positions: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        check_tiles(config.patch_size, config.image_size)
        shrunk = 2 ** len(config.stem)
        if config.patch_size % shrunk:
            raise UserError(f"Patches of {config.patch_size} px are no multiple of the stem's {shrunk} px.")
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.with_class = config.pool_type == "cls"
        std = config.width**-0.5
        self.stem = ConvolutionalStem(config.stem) if config.stem else nn.Identity()
        self.patch_size = config.patch_size // shrunk
        self.patch_embedding = nn.Linear((3, *config.stem)[-1] * self.patch_size**2, config.width, bias=False)
        self.class_token = nn.Parameter(std * torch.randn(config.width)) if self.with_class else None
        self.registers = nn.Parameter(std * torch.randn(config.registers, config.width)) if config.registers else None
        if config.pos_embed == "rotary":
            # Class token and registers stand at 0, where nothing is turned.
            place = torch.arange(1, self.grid + 1)
            rows, columns = place.repeat_interleave(self.grid), place.repeat(self.grid)
            around = (int(self.with_class), config.registers)
            self.register_buffer("rows", F.pad(rows, around), persistent=False)
            self.register_buffer("columns", F.pad(columns, around), persistent=False)
        elif config.pos_embed == "sine":
            places = sine_positions_2d(self.grid, config.width)
            self.register_buffer("positions", F.pad(places, (0, 0, int(self.with_class), 0)))
        else:
            self.positions = nn.Parameter(std * torch.randn(self.grid**2 + self.with_class, config.width))
        self.norm_pre = nn.LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch patches width"], Float[Tensor, "batch width"]]:
        """image: normalized pixels. Returns the tokens of all patches, and the pooled vector."""
        x = self.norm_post(self._transformed(self._embedded(image)))[:, : self.grid**2 + self.with_class]
        if self.with_class:
            return x[:, 1:], x[:, 0]
        return x, x.amax(1) if self.config.pool_type == "max" else x.mean(1)

    def pooled(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch width"]:
        """The pooled vector alone; where that is the class token, the last block computes nothing else."""
        if not self.with_class:
            return self(image)[-1]
        x = self._embedded(image)
        first = torch.arange(len(x), device=x.device) * x.shape[1]
        return self.norm_post(self._transformed(x, first))

    def _embedded(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch tokens width"]:
        """What the transformer is given: the class token, the patches, the registers."""
        x = self.patch_embedding(patchify(self.stem(image), self.patch_size))
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        if self.config.pos_embed != "rotary":
            x = x + self.positions
        if self.registers is not None:
            x = torch.cat([x, self.registers.expand(len(x), -1, -1)], dim=1)
        return self.norm_pre(x)

    def _transformed(
        self, x: Float[Tensor, "batch tokens width"], query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """query_rows: see `Transformer.forward`."""
        if self.config.pos_embed != "rotary":
            return self.transformer(x, query_rows=query_rows)
        size = x.shape[2] // self.config.num_heads
        packing = Packing.of(x.new_ones(x.shape[:2], dtype=torch.bool))
        rows, columns = (place.expand(len(x), -1) for place in (self.rows, self.columns))
        angles = rotary_angles_2d(rows, columns, size, ROPE_THETA, x)
        packed = self.transformer(packing.pack(x), replace(packing, rotation=angles), query_rows)
        return packing.pad(packed) if query_rows is None else packed


class ConvolutionalStem(nn.Module):
    """3 x 3 convolutions of stride 2, each with layer norm over its channels and ReLU (Xiao et al. 2021, section 4).

    Batch norm, as in the paper, would make what is seen of an image depend on the others of its batch.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False) for into, out in itertools.pairwise((3, *channels))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(out) for out in channels)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows columns"]:
        x = x.contiguous(memory_format=torch.channels_last)  # in which norms and convolutions follow without copies
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x
