"""A transformer that reads one sequence beside another: self-attention, then cross-attention, then an MLP.

This is the decoder block of Vaswani et al. (2017, section 3.1) in pre-norm form, without a causal mask, as methods that
fuse two modalities use it.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.transformer import Block


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise UserError(f"A width of {width} does not divide into {num_heads} heads.")
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys width"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """mask: False for places of the context that are padding."""
        query = self.query(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        visible = mask[:, None, None, :] if mask is not None else None
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttentionBlock(Block):
    """x + attention(norm(x)), then x + cross-attention(norm(x), context), then x + MLP(norm(x))."""

    def __init__(self, width: int, num_heads: int):
        super().__init__(width, num_heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross = CrossAttention(width, num_heads)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch keys width"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attention(self.norm1(x))
        x = x + self.cross(self.norm_cross(x), context, mask)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class CrossAttentionTransformer(nn.Module):
    """A stack of fusion blocks and a final norm."""

    def __init__(self, width: int, depth: int, num_heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, num_heads) for _ in range(depth))
        self.norm_post = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch keys width"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        for block in self.blocks:
            x = block(x, context, mask)
        return self.norm_post(x)
