"""Clips to tokens: patches of every frame, and attention that is joint (ViViT, Arnab et al. 2021, model 1) or divided.

Divided attention goes first over time, then over space (TimeSformer, Bertasius et al. 2021, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Attention, Block, Transformer
from polymodal.modalities.image import patchify


@dataclass(frozen=True)
class VideoEncoderConfig:
    """The video tower."""

    frames: int = 8
    """Frames of a clip."""
    size: int = 32
    """Side of a square frame in pixels."""
    patch: int = 8
    """Side of a patch in pixels; must divide the size."""
    width: int = 64
    """Channels of every token."""
    depth: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of a block."""
    attention: Literal["joint", "divided"] = "divided"
    """Whether a patch looks at all patches of all frames, or first along time and then within its frame."""


class VideoEncoder(Encoder):
    """One token a patch, frame after frame, each in reading order, and the pooled vector: their mean."""

    def __init__(self, config: VideoEncoderConfig):
        super().__init__()
        if config.size % config.patch:
            raise ValueError(f"patches of {config.patch} px do not tile a frame of {config.size} px")
        self.config = config
        places = (config.size // config.patch) ** 2
        std = config.width**-0.5
        self.patch_embedding = nn.Linear(3 * config.patch**2, config.width)
        self.space = nn.Parameter(std * torch.randn(places, config.width))
        self.time = nn.Parameter(std * torch.randn(config.frames, 1, config.width))
        self.norm_before = nn.LayerNorm(config.width)
        self.transformer: nn.Module
        if config.attention == "joint":
            self.transformer = Transformer(config.width, config.depth, config.heads)
        else:
            self.transformer = nn.ModuleList(DividedBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm_after = nn.LayerNorm(config.width)

    def forward(
        self, video: Float[Tensor, "batch frames 3 size size"]
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch width"]]:
        """video: normalised pixels."""
        patches = patchify(video.flatten(0, 1), self.config.patch).unflatten(0, video.shape[:2])
        x = self.norm_before(self.patch_embedding(patches) + self.space + self.time)
        if isinstance(self.transformer, nn.ModuleList):
            for block in self.transformer:
                x = block(x)
            x = x.flatten(1, 2)
        else:
            x = self.transformer(x.flatten(1, 2))
        x = self.norm_after(x)
        return x, x.mean(dim=1)


class DividedBlock(nn.Module):
    """Attention over time at every place, then a block over the places of every frame."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.over_time = Attention(width, heads)
        self.over_space = Block(width, heads)

    def forward(self, x: Float[Tensor, "batch frames places width"]) -> Float[Tensor, "batch frames places width"]:
        batch, frames, _, _ = x.shape
        along = self.norm(x).transpose(1, 2).flatten(0, 1)
        x = x + self.over_time(along).unflatten(0, (batch, -1)).transpose(1, 2)
        return self.over_space(x.flatten(0, 1)).unflatten(0, (batch, frames))
