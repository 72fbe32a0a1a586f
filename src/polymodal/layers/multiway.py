"""Multiway transformer: attention between modalities, all parameters of each modality's own.

BEiT-3 (Wang et al. 2023, section 2.1), as in the released code (torchscale): queries, keys, values, outputs, norms and
MLPs are chosen by modality, and a layer norm stands before the output of attention and MLP (sub-LayerNorm, Magneto,
Wang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.transformer import DropPath, drop_path_schedule


class Multiway(nn.Module):
    """A module for image tokens and one of the same shape for text tokens."""

    def __init__(self, build: Callable[[], nn.Module]):
        super().__init__()
        self.image, self.text = build(), build()

    def forward(self, x: Float[Tensor, "batch length width"], image_length: int) -> Float[Tensor, "batch length _"]:
        """Apply them. image_length: number of image tokens at the front of every sequence."""
        return torch.cat([self.image(x[:, :image_length]), self.text(x[:, image_length:])], dim=1)


class MultiwayBlock(nn.Module):
    """Pre-norm block whose parameters are chosen by modality."""

    def __init__(self, width: int, num_heads: int, drop_path_rate: float = 0.0, mlp_ratio: float = 4.0):
        """Build the block. drop_path_rate: probability of skipping a branch, see `DropPath`."""
        super().__init__()
        if width % num_heads:
            raise UserError(f"A width of {width} does not divide into {num_heads} heads.")
        mlp_dim = int(mlp_ratio * width)
        self.num_heads = num_heads
        self.norm1 = Multiway(lambda: nn.LayerNorm(width))
        self.qkv = Multiway(lambda: nn.Linear(width, 3 * width))
        self.attention_norm = Multiway(lambda: nn.LayerNorm(width))
        self.out = Multiway(lambda: nn.Linear(width, width))
        self.norm2 = Multiway(lambda: nn.LayerNorm(width))
        self.fc1 = Multiway(lambda: nn.Linear(width, mlp_dim))
        self.mlp_norm = Multiway(lambda: nn.LayerNorm(mlp_dim))
        self.fc2 = Multiway(lambda: nn.Linear(mlp_dim, width))
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x: Float[Tensor, "batch length width"], visible: Bool[Tensor, "batch 1 length length"], image_length: int
    ) -> Float[Tensor, "batch length width"]:
        """Apply the block.

        visible: True where a query attends to a key. image_length: number of image tokens at the front.
        """
        qkv = self.qkv(self.norm1(x, image_length), image_length)
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(1, 2).flatten(2)
        x = x + self.drop_path(self.out(self.attention_norm(attended, image_length), image_length))
        activations = F.gelu(self.fc1(self.norm2(x, image_length), image_length))
        return x + self.drop_path(self.fc2(self.mlp_norm(activations, image_length), image_length))


class MultiwayTransformer(nn.Module):
    """A stack of multiway blocks with a final norm per modality."""

    def __init__(self, width: int, depth: int, num_heads: int, drop_path_rate: float = 0.0):
        """Build the blocks. drop_path_rate: of the last block; rates increase linearly from 0."""
        super().__init__()
        self.blocks = nn.ModuleList(
            MultiwayBlock(width, num_heads, rate) for rate in drop_path_schedule(drop_path_rate, depth)
        )
        self.norm_post = Multiway(lambda: nn.LayerNorm(width))

    def forward(
        self,
        image: Float[Tensor, "batch image_length width"],
        text: Float[Tensor, "batch length width"],
        text_mask: Bool[Tensor, "batch length"],
        joint: bool = True,
    ) -> tuple[Float[Tensor, "batch image_length width"], Float[Tensor, "batch length width"]]:
        """Encode images and texts.

        text_mask: False for padding. joint: whether image and text attend to each other (fusion encoder), or not (dual
        encoder).
        """
        length = image.shape[1]
        # Segment ids: image 1, text 1 (joint) or 2 (separate), padding 0; attention stays within a segment.
        image_segment = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        segment_ids = torch.cat([image_segment, text_mask * (1 if joint else 2)], dim=1)
        visible = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
        x = torch.cat([image, text], dim=1)
        for block in self.blocks:
            x = block(x, visible, length)
        x = self.norm_post(x, length)
        return x[:, :length], x[:, length:]
