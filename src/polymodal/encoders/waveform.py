"""Waveform encoder: the convolutions of wav2vec 2.0 (Baevski et al. 2020, section 2), then a transformer.

Needed by: surgical_feedback.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.positions import sine_positions
from polymodal.layers.transformer import Packing, Transformer, mean_pool
from polymodal.modalities.padding import Padded

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # one frame per 20 ms at 16 kHz


@dataclass(frozen=True)
class WaveformEncoderConfig:
    """Configuration of the waveform encoder, for mono sound at 16 kHz."""

    channels: PositiveInt = 64
    """Channels of the convolutions; the paper has 512."""
    width: PositiveInt = 64
    """Embedding width of tokens; even."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""

    def build(self) -> Encoder:
        return WaveformEncoder(self)


class Convolutions(nn.Module):
    """Seven temporal convolutions with layer norm and GELU, as in the large models.

    Layer norm acts on frames, so padding changes no frame of the sound itself.
    """

    def __init__(self, channels: int):
        super().__init__()
        sizes = (1, *(channels,) * len(KERNELS))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride)
            for before, after, kernel, stride in zip(sizes, sizes[1:], KERNELS, STRIDES, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in KERNELS)

    def forward(self, samples: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames channels"]:
        x = samples[:, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x).transpose(1, 2))).transpose(1, 2)
        return x.transpose(1, 2)


def frame_counts(samples: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the number of frames of so many samples."""
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


class WaveformEncoder(Encoder):
    """Waveform transformer: one token per 20 ms, pooled by their mean."""

    def __init__(self, config: WaveformEncoderConfig):
        super().__init__()
        self.config = config
        self.convolutions = Convolutions(config.channels)
        self.norm_pre = nn.LayerNorm(config.channels)
        self.project = nn.Linear(config.channels, config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(self, sound: Padded) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """Encode waveforms. sound: samples in [-1, 1], at least 400 each. Raises ValueError for a shorter one."""
        lengths = frame_counts(sound.lengths)
        if (lengths < 1).any():
            raise ValueError("a waveform has at least 400 samples (25 ms)")
        x = self.project(self.norm_pre(self.convolutions(sound.values)))
        x = x + sine_positions(x.shape[1], self.config.width, x)
        packing = Packing.of(Padded(x, lengths).mask)
        packed = self.norm_post(self.transformer(packing.pack(x), packing))
        return Padded(packing.pad(packed), lengths), mean_pool(packed, packing)
