"""Cross-attention, and transformer blocks with self-attention and cross-attention.

Masks are boolean and True where a query may attend: (batch, keys) for padding of the context, or (batch, queries,
keys). A query with nothing to attend to gets the zero vector from attention, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError

AttentionMask = Bool[Tensor, "batch keys"] | Bool[Tensor, "batch queries keys"] | None
SelfAttentionMask = Bool[Tensor, "batch own"] | Bool[Tensor, "batch length own"] | None


class KeyValue(NamedTuple):
    """Projected keys and values of a context, computed once and reused while decoding."""

    keys: Float[Tensor, "batch heads keys size"]
    values: Float[Tensor, "batch heads keys size"]

    def select(self, rows: Tensor) -> KeyValue:
        """Return the keys and values of these rows of the batch, for example one row per beam."""
        return KeyValue(self.keys[rows], self.values[rows])


class CrossAttention(nn.Module):
    """Multi-head cross-attention (Vaswani et al. 2017); self-attention when the context is x itself."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        context_width: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
    ):
        """Build the projections.

        context_width: width of the context, by default `width`. head_dim: by default width / num_heads. Raises
        UserError where the width does not divide into the heads.
        """
        super().__init__()
        if head_dim is None and width % num_heads:
            raise UserError(f"A width of {width} does not divide into {num_heads} heads.")
        self.num_heads = num_heads
        inner = num_heads * (head_dim or width // num_heads)
        self.query = nn.Linear(width, inner, bias=bias)
        self.key_value = nn.Linear(context_width or width, 2 * inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)

    def project(self, context: Float[Tensor, "batch keys context_width"]) -> KeyValue:
        """Project a context to keys and values."""
        key, value = self.key_value(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return KeyValue(key, value)

    def attend(
        self, x: Float[Tensor, "batch queries width"], context: KeyValue, mask: AttentionMask = None
    ) -> Float[Tensor, "batch queries width"]:
        """Attend to a context that is already projected."""
        query = self.query(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        if mask is None:
            y = F.scaled_dot_product_attention(query, context.keys, context.values)
        else:
            visible = mask[:, None] if mask.ndim == 3 else mask[:, None, None]
            # A softmax over no key is NaN: let such queries attend everywhere, then zero their output.
            blind = ~visible.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(query, context.keys, context.values, attn_mask=visible | blind)
            y = y.masked_fill(blind, 0)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys context_width"],
        mask: AttentionMask = None,
    ) -> Float[Tensor, "batch queries width"]:
        return self.attend(x, self.project(context), mask)


def mlp(
    width: int,
    mlp_dim: int,
    bias: bool = True,
    activation: Callable[[Tensor], Tensor] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return an MLP of two linear layers with an activation (default: GELU) between them.

    dropout: after the activation.
    """
    middle: nn.Module = nn.GELU() if activation is None else Activation(activation)
    if dropout:
        middle = nn.Sequential(middle, nn.Dropout(dropout))
    return nn.Sequential(nn.Linear(width, mlp_dim, bias=bias), middle, nn.Linear(mlp_dim, width, bias=bias))


class Activation(nn.Module):
    """A function wrapped as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class CrossAttentionBlock(nn.Module):
    """Self-attention, cross-attention to a context, MLP, each with a residual connection.

    norm: "pre" normalizes the input of a branch (ViT, GPT), "post" the sum after it (BERT, hence ALBEF, BLIP and
    METER). Without `cross_attention`, it is a plain transformer block, which ignores its context. gated:
    cross-attention is multiplied by a learned scalar that is 0 at initialization, so that a pretrained block is
    unchanged; in a post-norm block, no norm follows it. FIBER's blocks are in `layers.fusion_in_backbone`: there, the
    output of self-attention attends to the context, before the residual.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        context_width: int | None = None,
        mlp_dim: int | None = None,
        norm: Literal["pre", "post"] = "pre",
        dropout: float = 0.0,
        cross_attention: bool = True,
        gated: bool = False,
    ):
        """Build the block. mlp_dim: by default 4 * width."""
        super().__init__()
        self.post_norm = norm == "post"
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = CrossAttention(width, num_heads)
        self.norm_cross = nn.LayerNorm(width) if cross_attention and not (gated and self.post_norm) else None
        self.cross_attention = CrossAttention(width, num_heads, context_width) if cross_attention else None
        self.gate = nn.Parameter(torch.zeros(())) if cross_attention and gated else None
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, mlp_dim or 4 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        context: Float[Tensor, "batch keys context_width"] | KeyValue | None = None,
        mask: SelfAttentionMask = None,
        context_mask: AttentionMask = None,
        past: KeyValue | None = None,
        self_attention: CrossAttention | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Apply the block.

        mask: for self-attention. context: tokens, or their projected keys and values; None skips cross-attention. past:
        keys and values of self-attention (KV cache), including those of x, used instead of projecting x.
        self_attention: in place of the block's own, as in BLIP's decoder, which shares all else with the encoder.
        """
        attention = self_attention or self.self_attention

        def attend(y: Tensor) -> Tensor:
            return attention.attend(y, past or attention.project(y), mask)

        # Self-attention, then cross-attention to the context, then the MLP.
        x = self._residual(x, self.norm1, attend)
        cross = self.cross_attention
        if context is not None and cross is not None:
            key_value = context if isinstance(context, KeyValue) else cross.project(context)
            if self.gate is not None:
                y = x if self.norm_cross is None else self.norm_cross(x)
                x = x + self.gate * self.dropout(cross.attend(y, key_value, context_mask))
            elif self.norm_cross is not None:
                x = self._residual(x, self.norm_cross, lambda y: cross.attend(y, key_value, context_mask))
        return self._residual(x, self.norm2, self.mlp)

    def normed(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """Return the input of self-attention, from which keys and values for a KV cache are projected."""
        return x if self.post_norm else self.norm1(x)

    def _residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.post_norm:
            return norm(x + self.dropout(branch(x)))
        return x + self.dropout(branch(norm(x)))


class CrossAttentionTransformer(nn.Module):
    """Pre-norm blocks with cross-attention to one context, and a final norm."""

    def __init__(self, width: int, depth: int, num_heads: int, context_width: int | None = None):
        """context_width: by default the width."""
        super().__init__()
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, num_heads, context_width) for _ in range(depth))
        self.norm_post = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        context: Float[Tensor, "batch keys context_width"],
        mask: SelfAttentionMask = None,
        context_mask: AttentionMask = None,
    ) -> Float[Tensor, "batch length width"]:
        for block in self.blocks:
            x = block(x, context, mask, context_mask)
        return self.norm_post(x)


def causal_mask(mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """Return a causal mask combined with the padding mask: True where a token may attend."""
    length = mask.shape[1]
    return mask[:, None] & mask.new_ones(length, length).tril()


@torch.no_grad()
def init_transformer(module: nn.Module, std: float = 0.02) -> None:
    """Initialize linear layers and embeddings from N(0, std), biases with 0, as in BERT and GPT-2."""
    for submodule in module.modules():
        if isinstance(submodule, nn.Linear | nn.Embedding):
            nn.init.normal_(submodule.weight, std=std)
        if isinstance(submodule, nn.Linear) and submodule.bias is not None:
            nn.init.zeros_(submodule.bias)
