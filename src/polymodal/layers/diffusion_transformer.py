"""Diffusion transformer (DiT), backbone of diffusion and flow models.

Peebles and Xie 2023, section 3.2, adaLN-Zero.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.transformer import Block
from polymodal.modalities.image import check_tiles, patchify, unpatchify


def sinusoidal_timestep_embedding(
    time: Float[Tensor, " batch"], width: int, scale: float = 1000.0
) -> Float[Tensor, "batch width"]:
    """Return sinusoidal embeddings of scale * time, with geometric frequencies 1 to 1/10,000 (Vaswani et al. 2017).

    time: in [0, 1]. width: even.
    """
    # Geometric progression of frequencies, as in the transformer's sinusoidal positions.
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = scale * time[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """MLP over a sinusoidal timestep embedding."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.width = width

    def forward(self, time: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        return super().forward(sinusoidal_timestep_embedding(time, self.width))


class AdaLNBlock(Block):
    """Transformer block with adaptive layer norm: a condition gives shift, scale and gate; gates start at 0
    (adaLN-Zero)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__(width, num_heads)
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch tokens width"], condition: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch tokens width"]:
        modulation = self.modulation(F.silu(condition))[:, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6, dim=-1)
        # adaLN-Zero (figure 3): x + gate * branch(norm(x) * (1 + scale) + shift).
        x = x + gate_1 * self.attention(self.norm1(x) * (1 + scale_1) + shift_1)
        return x + gate_2 * self.fc2(F.gelu(self.fc1(self.norm2(x) * (1 + scale_2) + shift_2)))


class DiffusionTransformer(nn.Module):
    """DiT for pixels: predicts an image from a noisy image and a condition; the output is 0 at initialization."""

    def __init__(self, image_size: int, patch_size: int, width: int, depth: int, num_heads: int, channels: int = 3):
        """Build the model. image_size: side in pixels, a multiple of `patch_size`."""
        super().__init__()
        check_tiles(patch_size, image_size)
        self.patch_size = patch_size
        self.into = nn.Linear(channels * patch_size**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn((image_size // patch_size) ** 2, width))
        self.blocks = nn.ModuleList(AdaLNBlock(width, num_heads) for _ in range(depth))
        self.norm_post = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * patch_size**2)
        # Zero initialization: the model predicts 0 at first (DiT, adaLN-Zero).
        for linear in (self.modulation, self.out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, image: Float[Tensor, "batch channels size size"], condition: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch channels size size"]:
        x = self.into(patchify(image, self.patch_size)) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        # Final layer: adaptive layer norm without a gate, then a linear layer to pixels.
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        return unpatchify(self.out(self.norm_post(x) * (1 + scale) + shift), self.patch_size)
