"""Blocks in which pictures and texts share attention, and have norms and perceptrons of their own.

The multiway transformer of VLMo and BEiT-3 (Bao et al. 2022, section 3.1; Wang et al. 2023, section 2.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.transformer import Attention, DropPath, Packing, rising


class Perceptron(nn.Module):
    """A norm and a perceptron of one hidden layer."""

    def __init__(self, width: int, ratio: float = 4.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, int(ratio * width))
        self.narrow = nn.Linear(int(ratio * width), width)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.narrow(F.gelu(self.widen(self.norm(x))))


class MultiwayBlock(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)); norms and perceptrons are those of the modality."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        """drop_path: see `DropPath`."""
        super().__init__()
        self.image_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.image_perceptron = Perceptron(width)
        self.text_perceptron = Perceptron(width)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch length width"], packing: Packing, pictured: int
    ) -> Float[Tensor, "batch length width"]:
        """pictured: how many tokens at the front of every sequence are of the picture."""
        image, text = x[:, :pictured], x[:, pictured:]
        normed = torch.cat([self.image_norm(image), self.text_norm(text)], dim=1)
        x = x + self.drop_path(self.attention(normed.flatten(0, 1), packing).view_as(x))
        image, text = x[:, :pictured], x[:, pictured:]
        return x + self.drop_path(torch.cat([self.image_perceptron(image), self.text_perceptron(text)], dim=1))


class MultiwayTransformer(nn.Module):
    """A stack of such blocks, with norms of each modality at the end."""

    def __init__(self, width: int, depth: int, heads: int, drop_path: float = 0.0):
        """drop_path: of the last block; it rises to that from 0 in equal steps."""
        super().__init__()
        self.blocks = nn.ModuleList(MultiwayBlock(width, heads, rate) for rate in rising(drop_path, depth))
        self.image_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)

    def forward(
        self,
        image: Float[Tensor, "batch pictured width"],
        text: Float[Tensor, "batch length width"],
        words: Bool[Tensor, "batch length"],
        joint: bool = True,
    ) -> tuple[Float[Tensor, "batch pictured width"], Float[Tensor, "batch length width"]]:
        """words: False where the text is padding. joint: whether picture and text attend to each other."""
        seen = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        document = torch.cat([seen, words * (1 if joint else 2)], dim=1)
        everywhere = torch.arange(document.numel(), device=image.device)
        packing = Packing(document > 0, everywhere, document)
        x = torch.cat([image, text], dim=1)
        for block in self.blocks:
            x = block(x, packing, image.shape[1])
        return self.image_norm(x[:, : image.shape[1]]), self.text_norm(x[:, image.shape[1] :])
