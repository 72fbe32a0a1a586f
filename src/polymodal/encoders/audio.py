"""Audio spectrogram transformer: patches of a log-mel spectrogram (AST, Gong et al. 2021, section 2.1).

Unlike AST, time positions are sinusoidal, so that a clip may have any length, and no padding is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.positions import sine_positions
from polymodal.layers.transformer import Packing, Transformer, mean_pool
from polymodal.modalities.padding import Padded


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Configuration of the audio encoder."""

    num_mel_bins: PositiveInt = 80
    """Number of mel bins of a frame."""
    patch_frames: PositiveInt = 8
    """Frames per patch."""
    patch_bins: PositiveInt = 16
    """Mel bins per patch; must divide the number of mel bins."""
    width: PositiveInt = 64
    """Embedding width of tokens; even."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""


class AudioEncoder(Encoder):
    """Audio encoder: one token per patch, ordered by time, then frequency from low to high, and the mean-pooled
    vector."""

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        if config.num_mel_bins % config.patch_bins:
            raise UserError(f"Patches of {config.patch_bins} bins do not tile a frame of {config.num_mel_bins}.")
        self.config = config
        self.bands = config.num_mel_bins // config.patch_bins
        self.patch_embedding = nn.Linear(config.patch_frames * config.patch_bins, config.width)
        self.band = nn.Parameter(config.width**-0.5 * torch.randn(self.bands, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(self, mel: Padded) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """Encode log-mel spectrograms. mel: standardized frames [batch, frames, bins]; padding has no influence."""
        frames = self.config.patch_frames
        values = mel.values * mel.mask[..., None]
        values = F.pad(values, (0, 0, 0, -values.shape[1] % frames))
        # (batch, time patches, bands, frames * bins): non-overlapping patches of the spectrogram.
        patches = values.unflatten(1, (-1, frames)).unflatten(3, (self.bands, -1)).transpose(2, 3).flatten(3)
        columns = patches.shape[1]
        # Position = learned embedding of the band + sinusoidal embedding of time.
        x = self.patch_embedding(patches) + self.band + sine_positions(columns, self.config.width, patches)[:, None]
        lengths = -(-mel.lengths // frames) * self.bands
        tokens = Padded(x.flatten(1, 2), lengths)
        packing = Packing.of(tokens.mask)
        packed = self.norm_post(self.transformer(packing.pack(tokens.values), packing))
        return Padded(packing.pad(packed), lengths), mean_pool(packed, packing)
