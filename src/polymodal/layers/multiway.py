"""Multiway transformer: shared self-attention, modality-specific norms and MLPs.

VLMo (Bao et al. 2022, section 3.1) and BEiT-3 (Wang et al. 2023, section 2.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.transformer import Attention, DropPath, Packing, drop_path_schedule


class Mlp(nn.Module):
    """Layer norm and a multilayer perceptron (MLP) with one hidden layer."""

    def __init__(self, width: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, int(mlp_ratio * width))
        self.fc2 = nn.Linear(int(mlp_ratio * width), width)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class MultiwayBlock(nn.Module):
    """Pre-norm block with shared attention, in which norms and MLPs are chosen by modality."""

    def __init__(self, width: int, num_heads: int, drop_path_rate: float = 0.0):
        """Build the block. drop_path_rate: probability of skipping a branch, see `DropPath`."""
        super().__init__()
        self.image_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.image_mlp = Mlp(width)
        self.text_mlp = Mlp(width)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x: Float[Tensor, "batch length width"], packing: Packing, imaged: int
    ) -> Float[Tensor, "batch length width"]:
        """Apply the block. imaged: number of image tokens at the front of every sequence."""
        image, text = x[:, :imaged], x[:, imaged:]
        # Modality-specific norms, shared attention over the concatenated sequence.
        normed = torch.cat([self.image_norm(image), self.text_norm(text)], dim=1)
        x = x + self.drop_path(self.attention(normed.flatten(0, 1), packing).view_as(x))
        image, text = x[:, :imaged], x[:, imaged:]
        return x + self.drop_path(torch.cat([self.image_mlp(image), self.text_mlp(text)], dim=1))


class MultiwayTransformer(nn.Module):
    """A stack of multiway blocks with a final norm per modality."""

    def __init__(self, width: int, depth: int, num_heads: int, drop_path_rate: float = 0.0):
        """Build the blocks. drop_path_rate: of the last block; rates increase linearly from 0."""
        super().__init__()
        self.blocks = nn.ModuleList(
            MultiwayBlock(width, num_heads, rate) for rate in drop_path_schedule(drop_path_rate, depth)
        )
        self.image_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)

    def forward(
        self,
        image: Float[Tensor, "batch pictured width"],
        text: Float[Tensor, "batch length width"],
        words: Bool[Tensor, "batch length"],
        joint: bool = True,
    ) -> tuple[Float[Tensor, "batch pictured width"], Float[Tensor, "batch length width"]]:
        """Encode images and texts.

        words: False for text padding. joint: whether image and text attend to each other (fusion encoder), or not (dual
        encoder).
        """
        # Segment ids: image 1, text 1 (joint) or 2 (separate), padding 0; attention stays within a segment.
        image_segment = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        document = torch.cat([image_segment, words * (1 if joint else 2)], dim=1)
        everywhere = torch.arange(document.numel(), device=image.device)
        packing = Packing(document > 0, everywhere, document)
        x = torch.cat([image, text], dim=1)
        for block in self.blocks:
            x = block(x, packing, image.shape[1])
        return self.image_norm(x[:, : image.shape[1]]), self.text_norm(x[:, image.shape[1] :])
