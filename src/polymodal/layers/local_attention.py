"""Self-attention with a sliding window and a few global tokens, for long sequences (Longformer, Beltagy et al. 2020).

A token attends to the tokens of its window and to the global tokens, with which each sequence begins; these attend to
all tokens, with queries, keys and values of their own. Time and memory grow with length x window: the sequence is cut
into blocks, of which each attends to itself, to its neighbors and to the global tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.transformer import Attention, Packing, PostNormBlock, QueryRows, Transformer, select_rows


def local_global_mask(
    mask: Bool[Tensor, "batch length"], window: int, num_global: int
) -> Bool[Tensor, "batch length length"]:
    """Return True where a token (query, second dimension) attends to another (key): the mask of the dense attention.

    mask: True for real tokens. window: number of tokens on both sides together. num_global: tokens at the start that
    attend to all and are attended to by all.
    """
    position = torch.arange(mask.shape[1], device=mask.device)
    near = (position[:, None] - position).abs() <= window // 2
    return (near | (position < num_global) | (position[:, None] < num_global)) & mask[:, None, :]


def local_attention(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch heads length dim"],
    value: Float[Tensor, "batch heads length dim"],
    mask: Bool[Tensor, "batch length"],
    window: int,
    num_global: int,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads length dim"]:
    """Attend within the window and to the global tokens, block by block.

    Equal, at real tokens that are not global, to dense attention with `local_global_mask`.
    """
    batch, _, length, _ = query.shape
    size = max(window // 2, 1)  # tokens of a block: a window reaches into one block on either side
    blocks = -(-length // size)
    padded = blocks * size - length

    def in_blocks(x: Tensor) -> Tensor:
        """(batch, heads, length, dim) -> (batch * blocks, heads, size, dim)"""
        x = F.pad(x, (0, 0, 0, padded)).unflatten(2, (blocks, size))
        return x.transpose(1, 2).flatten(0, 1)

    def with_neighbors(x: Tensor) -> Tensor:
        """(batch, heads, length, dim) -> (batch * blocks, heads, 3 * size, dim): the block before, itself, the next"""
        x = F.pad(x, (0, 0, size, padded + size)).unfold(2, 3 * size, size)  # (batch, heads, blocks, dim, 3 * size)
        return x.permute(0, 2, 1, 4, 3).flatten(0, 1)

    def of_blocks(x: Tensor) -> Tensor:
        """The global tokens, repeated for each block."""
        return x[:, :, :num_global].repeat_interleave(blocks, dim=0)

    keys, values = (torch.cat([of_blocks(x), with_neighbors(x)], dim=2) for x in (key, value))
    device = query.device
    place = torch.arange(blocks * size, device=device).view(blocks, size, 1)
    other = torch.arange(-size, (blocks + 1) * size, device=device).unfold(0, 3 * size, size)[:, None]
    # A global token is a key once, among the global ones.
    near = ((place - other).abs() <= window // 2) & (other >= num_global)
    real = F.pad(mask, (size, padded + size)).unfold(1, 3 * size, size)[:, :, None]
    # A token at which there is only padding attends to itself, since a softmax over nothing is no number.
    visible = (near & real) | (place == other)
    leading = mask[:, None, None, :num_global].expand(batch, blocks, size, num_global)
    allowed = torch.cat([leading, visible.expand(batch, blocks, size, 3 * size)], dim=3).flatten(0, 1)[:, None]
    y = F.scaled_dot_product_attention(in_blocks(query), keys, values, attn_mask=allowed, dropout_p=dropout)
    return y.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]


class LocalGlobalAttention(Attention):
    """Multi-head attention of Longformer, with further projections for what global tokens attend to (section 3.1)."""

    def __init__(self, width: int, num_heads: int, window: int, num_global: int = 1):
        """window: tokens on both sides together. num_global: tokens at the start with global attention, such as CLS."""
        super().__init__(width, num_heads)
        if window < 2 or window % 2:
            raise UserError(f"An attention window has an even number of tokens, and at least 2, not {window}.")
        self.window, self.num_global = window, num_global
        self.qkv_global = nn.Linear(width, 3 * width)

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """Attend. x: (batch, tokens, width), or (total, width) with its packing. query_rows: see `Transformer`."""
        dense = x if packing is None else packing.pad(x)
        mask = dense.new_ones(dense.shape[:2], dtype=torch.bool) if packing is None else packing.mask
        dropout = self.dropout if self.training else 0.0
        query, key, value = self._heads(self.qkv(dense))
        y = local_attention(query, key, value, mask, self.window, self.num_global, dropout)
        if self.num_global:
            # Queries of the global tokens; keys and values of all tokens.
            query, key, value = self._heads(self.qkv_global(dense))
            of_global = F.scaled_dot_product_attention(
                query[:, :, : self.num_global], key, value, attn_mask=mask[:, None, None], dropout_p=dropout
            )
            y = torch.cat([of_global, y[:, :, of_global.shape[2] :]], dim=2)
        y = y.transpose(1, 2).flatten(2)
        return self.out(select_rows(y if packing is None else packing.pack(y), query_rows))

    def _heads(self, qkv: Float[Tensor, "batch length three_widths"]) -> Tensor:
        return qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)


@torch.no_grad()
def mimetic_init_(attention: LocalGlobalAttention, gain: float = 4.0) -> None:
    """Initialize such that equal tokens attend to each other, and outputs are like inputs, from the first step on.

    Queries and keys have equal weights; the output projection is `gain` times the transpose of the values'. This is
    mimetic initialization (Trockman and Kolter 2023, section 3) with a larger gain: a mean over many tokens, such as
    that of a global token, is small.
    """
    width = attention.out.in_features
    query, key, value = attention.qkv.weight.split(width)
    key.copy_(query)
    attention.qkv_global.weight[2 * width :].copy_(value)
    attention.out.weight.copy_(gain * value.T)


def longformer(
    width: int,
    depth: int,
    num_heads: int,
    window: int,
    dropout: float = 0.0,
    norm_eps: float = 1e-12,
    mimetic: bool = False,
) -> Transformer:
    """Build the post-norm blocks of Longformer, with global attention of the first token (CLS) alone.

    mimetic: see `mimetic_init_`.
    """
    transformer = Transformer(width, depth, num_heads, dropout=dropout, kind=PostNormBlock)
    for block in transformer.blocks:
        assert isinstance(block, PostNormBlock)
        attention = LocalGlobalAttention(width, num_heads, window)
        attention.qkv.load_state_dict(block.attention.qkv.state_dict())
        attention.out.load_state_dict(block.attention.out.state_dict())
        nn.init.normal_(attention.qkv_global.weight, std=width**-0.5)
        nn.init.zeros_(attention.qkv_global.bias)
        if mimetic:
            mimetic_init_(attention)
        attention.dropout = dropout
        block.attention = attention
        block.norm1.eps = block.norm2.eps = norm_eps
    return transformer
