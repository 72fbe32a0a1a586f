"""Conformer (Gulati et al. 2020): self-attention for global context, depthwise convolution for local context.

Differences from the paper: rotary position embeddings (RoPE) instead of Transformer-XL's relative ones, and layer norm
instead of batch norm after the depthwise convolution, so that neither padding nor other sequences influence an output.
Only attention and convolution use padded tensors; everything else runs on packed tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.positions import rotary_angles, rotate
from polymodal.layers.transformer import Packing

ROPE_THETA = 10_000.0  # base of the rotary wavelengths


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary position embeddings (RoPE)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % (2 * num_heads):
            raise UserError(f"A width of {width} does not divide into {num_heads} heads of even size.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "total width"], packing: Packing) -> Float[Tensor, "total width"]:
        qkv = packing.pad(self.qkv(x))
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        position = torch.arange(qkv.shape[1], device=x.device).expand(len(qkv), -1)
        angles = rotary_angles(position, query.shape[-1], ROPE_THETA, query)
        # RoPE instead of the paper's relative sinusoidal positions.
        query, key = rotate(query, angles), rotate(key, angles)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=packing.visible(causal=False))
        return self.out(packing.pack(y.transpose(1, 2).flatten(2)))


class Convolution(nn.Module):
    """Convolution module: pointwise GLU gate, depthwise convolution over time, norm, SiLU, pointwise (section 2.2)."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"The convolution kernel size must be odd, not {kernel_size}.")
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "total width"], packing: Packing) -> Float[Tensor, "total width"]:
        gated = packing.pad(F.glu(self.gate(x), dim=-1))  # pointwise convolution + GLU; padding is 0
        # Depthwise convolution over time; padding is 0, so it acts as the convolution's own padding.
        mixed = packing.pack(self.depthwise(gated.transpose(1, 2)).transpose(1, 2))
        return self.out(F.silu(self.norm(mixed)))


def _half_step(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class ConformerBlock(nn.Module):
    """Macaron block: half-step MLP, self-attention, convolution, half-step MLP, layer norm (section 2.4)."""

    def __init__(self, width: int, num_heads: int, kernel_size: int):
        super().__init__()
        self.first, self.last = _half_step(width), _half_step(width)
        self.norm_attention, self.norm_convolution = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = RotaryAttention(width, num_heads)
        self.convolution = Convolution(width, kernel_size)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "total width"], packing: Packing) -> Float[Tensor, "total width"]:
        # Section 2.4: x + FFN(x) / 2, then MHSA, then Conv, then LayerNorm(x + FFN(x) / 2).
        x = x + self.first(x) / 2
        x = x + self.attention(self.norm_attention(x), packing)
        x = x + self.convolution(self.norm_convolution(x), packing)
        return self.norm_post(x + self.last(x) / 2)


class Conformer(nn.Module):
    """A stack of Conformer blocks."""

    def __init__(self, width: int, depth: int, num_heads: int, kernel_size: int):
        super().__init__()
        self.blocks = nn.ModuleList(ConformerBlock(width, num_heads, kernel_size) for _ in range(depth))

    def forward(
        self, x: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """Encode a padded batch. mask: False for padding, which affects no other output and becomes 0."""
        packing = Packing.of(mask)
        packed = packing.pack(x)
        for block in self.blocks:
            packed = block(packed, packing)
        return packing.pad(packed)
