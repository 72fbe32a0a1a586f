"""Video encoder: patches of frames with joint (ViViT, Arnab et al. 2021, model 1) or divided space-time attention.

Divided attention goes first over time, then over space (TimeSformer, Bertasius et al. 2021, section 3.3).
A layer norm before the blocks, as in CLIP, is in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.transformer import Attention, Block, DropPath, Transformer, drop_path_schedule
from polymodal.modalities.image import patchify


@dataclass(frozen=True)
class VideoEncoderConfig:
    """Configuration of the video encoder."""

    frames: PositiveInt = 8
    """Number of frames per clip."""
    image_size: PositiveInt = 32
    """Side of the square frames in pixels."""
    patch_size: PositiveInt = 8
    """Side of a patch in pixels; must divide the image size."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    attention: Literal["joint", "divided"] = "divided"
    """Space-time attention: joint over all patches of all frames, or divided into time and then space."""
    pool_type: Literal["avg", "cls"] = "avg"
    """Global pooling: mean over patches, or a CLS token."""
    drop_path_rate: DecayRate = 0.0
    """Drop path rate (stochastic depth) of the last block; rates increase linearly from 0."""

    @property
    def grid(self) -> int:
        """Number of patches per side of a frame."""
        return self.image_size // self.patch_size

    def build(self) -> Encoder:
        return VideoEncoder(self)


class VideoEncoder(Encoder):
    """Video transformer: one token per patch, frame by frame in row-major order, and the pooled vector."""

    def __init__(self, config: VideoEncoderConfig):
        super().__init__()
        if config.image_size % config.patch_size:
            raise UserError(f"Patches of {config.patch_size} px do not tile a frame of {config.image_size} px.")
        self.config = config
        std = config.width**-0.5
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.width)
        self.space = nn.Parameter(std * torch.randn(config.grid**2, config.width))
        self.time = nn.Parameter(std * torch.randn(config.frames, 1, config.width))
        self.with_class = config.pool_type == "cls"
        self.class_token = nn.Parameter(std * torch.randn(config.width)) if self.with_class else None
        self.norm_pre = nn.LayerNorm(config.width)
        self.transformer: nn.Module
        if config.attention == "joint":
            self.transformer = Transformer(
                config.width, config.depth, config.num_heads, drop_path_rate=config.drop_path_rate
            )
        else:
            rates = drop_path_schedule(config.drop_path_rate, config.depth)
            blocks = [DividedBlock(config.width, config.num_heads, self.with_class, rate) for rate in rates]
            for block in blocks[1:]:  # all blocks but the first begin without attention over time (released code)
                nn.init.zeros_(block.temporal_fc.weight)
                nn.init.zeros_(block.temporal_fc.bias)
            self.transformer = nn.ModuleList(blocks)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(
        self, video: Float[Tensor, "batch frames 3 size size"]
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch width"]]:
        """Encode clips. video: normalized pixels. Time embeddings are interpolated for another number of frames."""
        frames = video.shape[1]
        patches = patchify(video.flatten(0, 1), self.config.patch_size).unflatten(0, video.shape[:2])
        x = self.patch_embedding(patches) + self.space + self._times(frames)
        if isinstance(self.transformer, nn.ModuleList):
            x = self.norm_pre(self._after_class(x))
            for block in self.transformer:
                x = block(x)
            pooled, patches = x[:, 0, 0], x[:, :, int(self.with_class) :].flatten(1, 2)
        else:
            x = self.transformer(self.norm_pre(self._after_class(x.flatten(1, 2))))
            pooled, patches = x[:, 0], x[:, int(self.with_class) :]
        patches = self.norm_post(patches)
        return patches, self.norm_post(pooled) if self.with_class else patches.mean(dim=1)

    def _times(self, frames: int) -> Float[Tensor, "frames 1 width"]:
        if frames == self.config.frames:
            return self.time
        return F.interpolate(self.time.permute(1, 2, 0), frames, mode="linear").permute(2, 0, 1)

    def _after_class(self, x: Float[Tensor, "*shape places width"]) -> Float[Tensor, "*shape all width"]:
        """Prepend the CLS token, if there is one; with divided attention, to every frame."""
        if self.class_token is None:
            return x
        return torch.cat([self.class_token.expand(*x.shape[:-2], 1, -1), x], dim=-2)


class DividedBlock(Block):
    """Divided space-time block: attention over time at every patch position, attention within every frame, then an MLP.

    The CLS token takes part in spatial attention only, in every frame, and is updated by the mean over frames.
    """

    def __init__(self, width: int, num_heads: int, with_class: bool = False, drop_path_rate: float = 0.0):
        """Build the block. drop_path_rate: probability of skipping a branch, see `DropPath`."""
        super().__init__(width, num_heads)
        self.with_class = with_class
        self.temporal_norm = nn.LayerNorm(width)
        self.temporal_attention = Attention(width, num_heads)
        self.temporal_fc = nn.Linear(width, width)
        self.drop_path = DropPath(drop_path_rate)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch frames places width"]
    ) -> Float[Tensor, "batch frames places width"]:
        """Apply the block. x: patches, with the CLS token before those of every frame if there is one."""
        batch, frames, _, _ = x.shape
        cls_token, patches = self._split(x)
        # Temporal attention: the tokens of one patch position over all frames.
        temporal = self.temporal_norm(patches).transpose(1, 2).flatten(0, 1)
        temporal = self.drop_path(self.temporal_attention(temporal)).unflatten(0, (batch, -1)).transpose(1, 2)
        x = torch.cat([cls_token, patches + self.temporal_fc(temporal)], dim=2)
        # Spatial attention within every frame; the CLS token's updates are averaged over frames.
        spatial = self.drop_path(self.attention(self.norm1(x.flatten(0, 1)))).unflatten(0, (batch, frames))
        cls_update, patch_update = self._split(spatial)
        x = x + torch.cat([cls_update.mean(1, keepdim=True).expand_as(cls_update), patch_update], dim=2)
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _split(self, x: Float[Tensor, "batch frames places width"]) -> tuple[Tensor, Tensor]:
        """Return the CLS token (or no token) and the patches of every frame."""
        return x[:, :, : int(self.with_class)], x[:, :, int(self.with_class) :]
