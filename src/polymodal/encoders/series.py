"""Time series and spectra to tokens: patches and a transformer (PatchTST, Nie et al. 2023, section 3.1).

Unlike PatchTST, a patch holds all channels of its moment, since what a method embeds is the whole series.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.encoders.encoder import Encoder
from polymodal.layers.positions import sine_positions
from polymodal.layers.transformer import Packing, Transformer, mean_of_tokens
from polymodal.modalities.padding import Padded
from polymodal.ranges import Count, Whole


@dataclass(frozen=True)
class SeriesEncoderConfig:
    """The series tower."""

    channels: Count = 1
    """The most channels that a series has; fewer are padded with zeros, and stand for nothing."""
    patch: Count = 16
    """Values of a patch."""
    width: Count = 64
    """Channels of every token; even."""
    depth: Whole = 2
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads of a block."""


class SeriesEncoder(Encoder):
    """One token a patch, with all channels of a moment together, and the pooled vector."""

    def __init__(self, config: SeriesEncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.patch * config.channels, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.norm_after = nn.LayerNorm(config.width)

    def forward(self, series: Padded) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """series: standardised values [batch, length, channels]. What stands behind a length has no influence."""
        patch = self.config.patch
        values = series.values * series.mask[..., None]
        values = F.pad(values, (0, self.config.channels - values.shape[2], 0, -values.shape[1] % patch))
        x = self.patch_embedding(values.unflatten(1, (-1, patch)).flatten(2))
        x = x + sine_positions(x.shape[1], self.config.width, x)
        lengths = -(-series.lengths // patch)
        packing = Packing.of(Padded(x, lengths).mask)
        packed = self.norm_after(self.transformer(packing.pack(x), packing))
        return Padded(packing.pad(packed), lengths), mean_of_tokens(packed, packing)
