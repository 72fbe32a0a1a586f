"""Time series and spectrum encoder: patches and a transformer (PatchTST, Nie et al. 2023, section 3.1).

Unlike PatchTST, a patch has all channels (channel mixing), since the whole series is embedded.

Needed by: astrom3.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.positions import sine_positions
from polymodal.layers.transformer import Packing, Transformer, mean_pool
from polymodal.modalities.padding import Padded


@dataclass(frozen=True)
class SeriesEncoderConfig:
    """Configuration of the time series encoder."""

    channels: PositiveInt = 1
    """Maximum number of channels; series with fewer are padded with zeros."""
    patch_size: PositiveInt = 16
    """Time steps per patch."""
    width: PositiveInt = 64
    """Embedding width of tokens; even."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""


class SeriesEncoder(Encoder):
    """Patch transformer: one token per patch of all channels, and the mean-pooled vector."""

    def __init__(self, config: SeriesEncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.patch_size * config.channels, config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(self, series: Padded) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """Encode series. series: standardized values [batch, length, channels]; padding has no influence."""
        patch = self.config.patch_size
        values = series.values * series.mask[..., None]
        values = F.pad(values, (0, self.config.channels - values.shape[2], 0, -values.shape[1] % patch))
        # Non-overlapping patches over time, all channels in one token.
        x = self.patch_embedding(values.unflatten(1, (-1, patch)).flatten(2))
        x = x + sine_positions(x.shape[1], self.config.width, x)
        lengths = -(-series.lengths // patch)
        packing = Packing.of(Padded(x, lengths).mask)
        packed = self.norm_post(self.transformer(packing.pack(x), packing))
        return Padded(packing.pad(packed), lengths), mean_pool(packed, packing)
