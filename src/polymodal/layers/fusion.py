"""A transformer that reads one sequence beside another: self-attention, then cross-attention, then a perceptron.

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

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise UserError(f"A width of {width} does not divide into {heads} heads.")
        self.heads = heads
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
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        visible = mask[:, None, None, :] if mask is not None else None
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out(y.transpose(1, 2).flatten(2))


class FusionBlock(Block):
    """x + attention(norm(x)), then x + cross-attention(norm(x), context), then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross = CrossAttention(width, heads)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch keys width"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attention(self.norm_1(x))
        x = x + self.cross(self.norm_cross(x), context, mask)
        return x + self.narrow(F.gelu(self.widen(self.norm_2(x))))


class FusionTransformer(nn.Module):
    """A stack of fusion blocks and a final norm."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(width, heads) for _ in range(depth))
        self.norm_after = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch keys width"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        for block in self.blocks:
            x = block(x, context, mask)
        return self.norm_after(x)
