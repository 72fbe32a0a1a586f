"""Gated cross-attention inside the blocks of a backbone (FIBER, Dou et al. 2022, section 3.1, equations 1 and 2).

Without a context, a block is that of the backbone, so that two backbones are a dual encoder; with the tokens of the
other backbone as context, they are a fusion encoder. The gate is 0 at initialization, when both are the same function.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.layers.cross_attention import CrossAttention, mlp


class Context(NamedTuple):
    """Tokens of the other backbone, and their mask: False for padding; None: no padding."""

    tokens: Float[Tensor, "batch keys context_width"]
    mask: Bool[Tensor, "batch keys"] | None = None


class GatedFusion(nn.Module):
    """y + alpha * cross_attention(norm(y), context), where y is the output of self-attention.

    It is inserted after the output projection of a block's self-attention. Windows make no difference to it, because
    every token attends to the whole context.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        context_width: int,
        norm: bool = False,
        alpha_init: float = 0.0,
        dropout: float = 0.0,
    ):
        """norm: whether queries are normalized, as in a pre-norm backbone. alpha_init: the gate at the start."""
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.cross_attention = CrossAttention(width, num_heads, context_width)
        self.dropout = nn.Dropout(dropout)
        self.alpha = nn.Parameter(torch.tensor(float(alpha_init)))

    def forward(
        self, attended: Float[Tensor, "batch queries width"], context: Context | None
    ) -> Float[Tensor, "batch queries width"]:
        """attended: output of self-attention. context: None switches fusion off."""
        if context is None:
            return attended
        y = self.cross_attention(self.norm(attended), context.tokens, context.mask)
        return attended + self.alpha * self.dropout(y)


class PostNormFusionBlock(nn.Module):
    """Block of BERT and RoBERTa with fusion.

    x = norm(x + attention(x) + alpha * cross_attention(attention(x), context)), then x = norm(x + MLP(x)).
    """

    def __init__(
        self, width: int, num_heads: int, mlp_dim: int, dropout: float = 0.0, fusion: GatedFusion | None = None
    ):
        super().__init__()
        self.self_attention = CrossAttention(width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = mlp(width, mlp_dim)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.fusion = fusion

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length length"],
        context: Context | None = None,
        last_norm: bool = True,
    ) -> Float[Tensor, "batch length width"]:
        """mask: False for padding, or True where a token may attend to another. last_norm: whether the sum after the
        MLP is normalized."""
        y = self.dropout(self.self_attention(x, x, mask))
        x = self.norm1(x + (y if self.fusion is None else self.fusion(y, context)))
        y = x + self.dropout(self.mlp(x))
        return self.norm2(y) if last_norm else y
