"""Image encoder: vision transformer (ViT, Dosovitskiy et al. 2021) as in CLIP, optionally with a convolutional stem."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.perceiver_resampler import MAPHead
from polymodal.layers.positions import rotary_angles_2d, sine_positions_2d
from polymodal.layers.transformer import Packing, QueryRows, Transformer
from polymodal.modalities.image import check_tiles, patchify

KeptPatches = Int[Tensor, "batch kept"] | None
"""Indices of the patches that are encoded, in row-major order (FLIP, Li et al. 2023, section 3: patch dropping); None:
all. `visible_indices(mask_patches(...))` of `data.masks` samples them."""
ROPE_THETA = 100.0  # base of the rotary wavelengths, as in DINOv3; grids are short


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Configuration of the image encoder."""

    image_size: PositiveInt = 32
    """Side of the square input image in pixels."""
    patch_size: PositiveInt = 8
    """Side of a patch in pixels; must divide the image size."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    stem: tuple[PositiveInt, ...] = ()
    """Channels of the convolutional stem: 3 x 3 convolutions of stride 2 before the patches (Xiao et al. 2021); by
    default, patches are cut from the pixels."""
    pool_type: Literal["avg", "max", "cls", "map", "avg_all"] = "avg"
    """Global pooling: mean or maximum over patches, a CLS token, multihead attention pooling (MAP, SigLIP), or the mean
    over a CLS token and the patches (FLIP)."""
    pos_embed: Literal["learned", "sine", "rotary"] = "learned"
    """Position embeddings: learned, fixed 2-D sine-cosine, or 2-D rotary (RoPE)."""
    registers: NonNegativeInt = 0
    """Number of register tokens, extra learned tokens that are discarded at the output (Darcet et al. 2024)."""

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of red, green and blue (0-1) for normalization; None: those of the corpus."""
        return None

    def build(self) -> Encoder:
        return ImageEncoder(self)


class ImageEncoder(Encoder):
    """Vision transformer (ViT); returns one token per patch in row-major order, and the pooled vector."""

    positions: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        check_tiles(config.patch_size, config.image_size)
        stride = 2 ** len(config.stem)
        if config.patch_size % stride:
            raise UserError(f"Patches of {config.patch_size} px are no multiple of the stem's {stride} px.")
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.with_class = config.pool_type in ("cls", "avg_all")
        std = config.width**-0.5
        self.stem = ConvolutionalStem(config.stem) if config.stem else nn.Identity()
        self.patch_size = config.patch_size // stride
        self.patch_embedding = nn.Linear((3, *config.stem)[-1] * self.patch_size**2, config.width, bias=False)
        self.class_token = nn.Parameter(std * torch.randn(config.width)) if self.with_class else None
        self.registers = nn.Parameter(std * torch.randn(config.registers, config.width)) if config.registers else None
        if config.pos_embed == "rotary":
            position = torch.arange(1, self.grid + 1)
            self.register_buffer("rows", position.repeat_interleave(self.grid), persistent=False)
            self.register_buffer("columns", position.repeat(self.grid), persistent=False)
        elif config.pos_embed == "sine":
            embedding = sine_positions_2d(self.grid, config.width)
            self.register_buffer("positions", F.pad(embedding, (0, 0, int(self.with_class), 0)))
        else:
            self.positions = nn.Parameter(std * torch.randn(self.grid**2 + self.with_class, config.width))
        self.norm_pre = nn.LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)
        self.map_head = MAPHead(config.width, config.num_heads) if config.pool_type == "map" else None

    def forward(
        self, image: Float[Tensor, "batch 3 size size"], kept: KeptPatches = None
    ) -> tuple[Float[Tensor, "batch patches width"], Float[Tensor, "batch width"]]:
        """Encode images. image: normalized pixels. kept: see `KeptPatches`. Returns patch tokens and the pooled vector.

        Raises UserError for `kept` with a convolutional stem, whose features are of the dropped patches as well.
        """
        x = self.norm_post(self._transformed(self._embedded(image, kept), kept=kept))
        if self.registers is not None:  # they come last and are dropped
            x = x[:, : -len(self.registers)]
        if self.with_class:
            return x[:, 1:], x[:, 0] if self.config.pool_type == "cls" else x.mean(1)
        if self.map_head is not None:
            return x, self.map_head(x)
        return x, x.amax(1) if self.config.pool_type == "max" else x.mean(1)

    def pooled(
        self, image: Float[Tensor, "batch 3 size size"], kept: KeptPatches = None
    ) -> Float[Tensor, "batch width"]:
        """Return the pooled vector; with a CLS token, the last block computes that token only."""
        if self.config.pool_type != "cls":
            return self(image, kept)[-1]
        x = self._embedded(image, kept)
        first = torch.arange(len(x), device=x.device) * x.shape[1]
        return self.norm_post(self._transformed(x, first, kept))

    def _embedded(
        self, image: Float[Tensor, "batch 3 size size"], kept: KeptPatches
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the input of the transformer: CLS token, patches, register tokens, with positions."""
        if kept is not None and self.config.stem:
            raise UserError("Patches cannot be dropped behind a convolutional stem; leave it out (--image.stem).")
        patches = patchify(self.stem(image), self.patch_size)
        if kept is not None:
            patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
        x = self.patch_embedding(patches)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        if self.config.pos_embed != "rotary":
            with_class = int(self.with_class)
            places = slice(None) if kept is None else F.pad(kept + with_class, (with_class, 0))
            x = x + self.positions[places]
        if self.registers is not None:
            x = torch.cat([x, self.registers.expand(len(x), -1, -1)], dim=1)
        return self.norm_pre(x)

    def _transformed(
        self, x: Float[Tensor, "batch tokens width"], query_rows: QueryRows = None, kept: KeptPatches = None
    ) -> Float[Tensor, "... width"]:
        """Apply the blocks. query_rows: see `Transformer.forward`."""
        if self.config.pos_embed != "rotary":
            return self.transformer(x, query_rows=query_rows)
        size = x.shape[2] // self.config.num_heads
        packing = Packing.of(x.new_ones(x.shape[:2], dtype=torch.bool))
        # CLS and register tokens are at position 0, whose rotation is the identity.
        around = (int(self.with_class), self.config.registers)
        places = (self.rows, self.columns)
        rows, columns = (F.pad(place.expand(len(x), -1) if kept is None else place[kept], around) for place in places)
        angles = rotary_angles_2d(rows, columns, size, ROPE_THETA, x)
        packed = self.transformer(packing.pack(x), replace(packing, rotation=angles), query_rows)
        return packing.pad(packed) if query_rows is None else packed


class ConvolutionalStem(nn.Module):
    """Convolutional stem: 3 x 3 convolutions of stride 2 with layer norm and ReLU (Xiao et al. 2021, section 4).

    Layer norm replaces the paper's batch norm, which would make features depend on other images of the batch.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False) for into, out in itertools.pairwise((3, *channels))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(out) for out in channels)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows columns"]:
        x = x.contiguous(memory_format=torch.channels_last)  # avoids copies between norms and convolutions
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x
