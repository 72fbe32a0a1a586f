"""Text encoder of AIMv2's LiT: the causal text transformer of CLIP with RMSNorm, SwiGLU and no biases.

Needed by: aimv2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from polymodal.constraints import PositiveInt
from polymodal.encoders.text import TextEncoder, TextEncoderConfig
from polymodal.layers.swiglu_transformer import NORM_EPS, SwiGLUTransformer


@dataclass(frozen=True)
class SwiGLUTextEncoderConfig(TextEncoderConfig):
    """Configuration of the text encoder with RMSNorm and SwiGLU; it has no dropout."""

    mlp_dim: PositiveInt = 176
    """Inner width of the SwiGLU MLPs."""

    def build(self, vocab_size: int) -> SwiGLUTextEncoder:
        return SwiGLUTextEncoder(self, vocab_size)


class SwiGLUTextEncoder(TextEncoder):
    """Text transformer with RMSNorm and SwiGLU; see `TextEncoder`."""

    def __init__(self, config: SwiGLUTextEncoderConfig, vocab_size: int):
        super().__init__(config, vocab_size)
        self.transformer = SwiGLUTransformer(
            config.width, config.depth, config.num_heads, config.mlp_dim, config.causal
        )
        self.norm_post = nn.RMSNorm(config.width, NORM_EPS)  # type: ignore[assignment]
