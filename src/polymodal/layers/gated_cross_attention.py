"""Gated cross-attention of a frozen language model to media (Flamingo, Alayrac et al. 2022, section 2.2, figure 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.layers.cross_attention import AttentionMask, CrossAttention, KeyValue, mlp


def media_attention_mask(
    media_positions: Bool[Tensor, "batch length"],
    num_media: int,
    attend: Literal["last", "all"] = "last",
    document: Int[Tensor, "batch length"] | None = None,
) -> Bool[Tensor, "batch length media"]:
    """Return which images a text token attends to: the last one before it, or all earlier ones (section 2.3).

    A placeholder attends to its own image; text before the first image attends to none. media_positions: True at the
    placeholder of every image; the images of a row are numbered in reading order. document: segment id of every
    position in packed rows, from 1; images of other segments are masked.
    """
    preceding = media_positions.cumsum(1)[..., None]  # images up to each position
    image_index = torch.arange(1, num_media + 1, device=media_positions.device)
    visible = image_index == preceding if attend == "last" else image_index <= preceding
    if document is None:
        return visible
    documents = document.new_zeros(len(document), num_media + 1)
    index = (media_positions.cumsum(1) * media_positions).clamp(max=num_media)
    documents = documents.scatter(1, index, document * media_positions)[:, 1:]  # column 0 takes what is no image
    return visible & (documents[:, None] == document[..., None])


class GatedCrossAttention(nn.Module):
    """x + tanh(a) * attention(norm(x), media), then x + tanh(b) * MLP(norm(x)); a = b = 0 at initialization.

    Initially the block is the identity, so that a pretrained language model keeps its function.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        media_width: int | None = None,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        """Build the block.

        media_width: width of the image tokens, by default `width`. head_dim: 64 in the paper, by default width /
        num_heads. activation: squared ReLU in the paper, by default GELU (OpenFlamingo).
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CrossAttention(width, num_heads, media_width, head_dim, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(()))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, int(mlp_ratio * width), bias=False, activation=activation)
        self.mlp_gate = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        media: Float[Tensor, "batch media tokens media_width"],
        mask: Bool[Tensor, "batch length media"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Apply the block.

        media: tokens of every image, equally many per image. mask: see `media_attention_mask`; None: all visible. A
        text token without a visible image gets 0 from attention, and still goes through the MLP.
        """
        return self.attend(x, self.attention.project(media.flatten(1, 2)), repeat_mask(mask, media.shape[2]))

    def attend(
        self, x: Float[Tensor, "batch length width"], media: KeyValue | None, mask: AttentionMask = None
    ) -> Float[Tensor, "batch length width"]:
        """Attend to projected media, with a mask over their tokens; without media, apply the MLP alone."""
        if media is not None:
            # tanh gates (section 2.2): 0 at initialization, so the frozen language model is unchanged.
            x = x + self.attention_gate.tanh() * self.attention.attend(self.norm1(x), media, mask)
        return x + self.mlp_gate.tanh() * self.mlp(self.norm2(x))


def repeat_mask(
    mask: Bool[Tensor, "batch length media"] | None, tokens: int
) -> Bool[Tensor, "batch length keys"] | None:
    """Expand a mask over images to a mask over their tokens."""
    return None if mask is None else mask.repeat_interleave(tokens, dim=2)
