"""Transformer of CLIP: pre-norm blocks of self-attention and a GELU MLP.

A batch is either dense (all sequences have the same number of tokens) or packed: the real tokens of all sequences in
one row (sequence packing), so that no layer computes padding. Only attention pads packed sequences to a rectangle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.positions import rotate

QueryRows = Int[Tensor, " rows"] | None


@dataclass(frozen=True)
class Packing:
    """Layout of packed sequences. mask: True where the rectangle batch x length has a real token.

    segment_ids: where a row holds several sequences, the id of each, from 1, and 0 where there is no token; attention
    stays within a segment. bias: added to the attention logits of all blocks, such as a relative position bias. prefix:
    number of leading tokens per row that all tokens attend to even if attention is causal (prefix LM, Raffel et al.
    2020, section 3.2.1). rotation: RoPE of queries and keys (`layers.positions.rotary_angles`).
    """

    mask: Bool[Tensor, "batch length"]
    indices: Int[Tensor, " total"]
    segment_ids: Int[Tensor, "batch length"] | None = None
    bias: Float[Tensor, "batch heads length length"] | None = None
    prefix: Int[Tensor, " batch"] | None = None
    rotation: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch length"]) -> Packing:
        """Return the packing of one sequence per row."""
        return cls(mask, mask.flatten().nonzero().squeeze(1))

    @classmethod
    def of_segments(cls, segment_ids: Int[Tensor, "batch length"]) -> Packing:
        """Return the packing of several sequences per row."""
        mask = segment_ids > 0
        return cls(mask, mask.flatten().nonzero().squeeze(1), segment_ids)

    def visible(self, causal: bool) -> Bool[Tensor, "batch 1 queries keys"] | None:
        """Return True where a query may attend to a key; None where a causal mask is enough."""
        if self.segment_ids is None and (not causal or self.prefix is None):
            # Causal: right padding comes after every key that a real token attends to.
            return None if causal else self.mask[:, None, None, :]
        if self.segment_ids is None:
            allowed = self.mask[:, None, :]
        else:
            allowed = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
        if causal:
            position = torch.arange(self.mask.shape[1], device=self.mask.device)
            order = position <= position[:, None]
            allowed = allowed & (order if self.prefix is None else order | (position < self.prefix[:, None, None]))
        return allowed[:, None]

    def attention_mask(self, causal: bool) -> Tensor | None:
        """Return the mask for scaled_dot_product_attention: boolean, or additive with `bias`; None where causality is
        enough."""
        visible = self.visible(causal)
        if self.bias is None:
            return visible
        if visible is None:
            length = self.mask.shape[1]
            visible = self.mask.new_ones(length, length).tril()
        return self.bias.masked_fill(~visible, float("-inf"))

    def pack(self, padded: Tensor) -> Tensor:
        """Pack: (batch, length, ...) -> (total, ...)."""
        return padded.flatten(0, 1).index_select(0, self.indices)

    def pad(self, packed: Tensor) -> Tensor:
        """Pad: (total, ...) -> (batch, length, ...), with zeros where there is no token."""
        rectangle = packed.new_zeros((self.mask.numel(), *packed.shape[1:]))
        return rectangle.index_copy(0, self.indices, packed).unflatten(0, self.mask.shape)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) through scaled_dot_product_attention."""

    def __init__(self, width: int, num_heads: int, causal: bool = False):
        super().__init__()
        if width % num_heads:
            raise UserError(f"A width of {width} does not divide into {num_heads} heads.")
        self.num_heads = num_heads
        self.causal = causal
        self.dropout = 0.0  # of attention weights; `Transformer` sets it
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """Attend. x: (batch, tokens, width), or (total, width) with its packing. query_rows: see `Transformer`."""
        # Project packed tokens, pad only for attention, and pack its output again.
        qkv = self.qkv(x)
        if packing is not None:
            qkv = packing.pad(qkv)
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if packing is not None and packing.rotation is not None:
            query, key = rotate(query, packing.rotation), rotate(key, packing.rotation)
        mask = packing.attention_mask(self.causal) if packing is not None else None
        causal = self.causal and mask is None
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        y = y.transpose(1, 2).flatten(2)
        return self.out(select_rows(y if packing is None else packing.pack(y), query_rows))


class DropPath(nn.Module):
    """Drop path (stochastic depth, Huang et al. 2016): in training, skip a branch with probability `rate` per example.

    Rows are examples, unless the example of each row is given, as for packed tokens.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(
        self, branch: Float[Tensor, "rows *length width"], example: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows *length width"]:
        if not (self.training and self.rate):
            return branch
        keep = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        # Scaled by 1 / (1 - rate), so that the expectation equals the branch in evaluation.
        return branch * (keep if example is None else keep[example]) / (1 - self.rate)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Turn off the dropout of a module in training mode inside the block."""
    active = [part for part in module.modules() if isinstance(part, nn.Dropout) and part.training]
    for part in active:
        part.eval()
    try:
        yield
    finally:
        for part in active:
            part.train()


def drop_path_schedule(rate: float, depth: int) -> list[float]:
    """Return the drop path rates of all blocks, linear from 0 to `rate` at the last."""
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, num_heads: int, causal: bool = False, dropout: float = 0.0, mlp_ratio: float = 4.0):
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.drop_path: nn.Module = nn.Identity()

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """Apply the block. query_rows: see `Transformer.forward`."""
        x = select_rows(x, query_rows) + self.drop_path(
            self.dropout(self.attention(self.norm1(x), packing, query_rows))
        )
        return x + self.drop_path(self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x))))))


class PostNormBlock(Block):
    """Post-norm transformer block: norm(x + attention(x)), then norm(x + MLP(x)), as in BERT and RoBERTa."""

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """Apply the block. query_rows: see `Transformer.forward`."""
        x = self.norm1(select_rows(x, query_rows) + self.dropout(self.attention(x, packing, query_rows)))
        return self.norm2(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class Transformer(nn.Module):
    """A stack of blocks with the initialization of CLIP (Radford et al. 2021, section 2.4 and released code)."""

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        kind: type[Block] = Block,
        drop_path_rate: float = 0.0,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
    ):
        """Build the blocks.

        drop_path_rate: of the last block, see `DropPath`; rates increase linearly from 0. qkv_bias: whether queries,
        keys and values have biases. attention_dropout: of attention weights, as in BERT.
        """
        super().__init__()
        blocks = [kind(width, num_heads, causal, dropout) for _ in range(depth)]
        for block in blocks:
            block.attention.dropout = attention_dropout
            if not qkv_bias:
                block.attention.qkv = nn.Linear(width, 3 * width, bias=False)
        if drop_path_rate:
            for block, rate in zip(blocks, drop_path_schedule(drop_path_rate, depth), strict=True):
                block.drop_path = DropPath(rate)
        # Projections into the residual stream are scaled by 1 / sqrt(2 * depth), as in GPT-2.
        residual_std = width**-0.5 * (2 * max(depth, 1)) ** -0.5
        for block in blocks:
            linears = {
                block.attention.qkv: width**-0.5,
                block.attention.out: residual_std,
                block.fc1: (2 * width) ** -0.5,
                block.fc2: residual_std,
            }
            for linear, std in linears.items():
                nn.init.normal_(linear.weight, std=std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        x: Float[Tensor, "... width"],
        packing: Packing | None = None,
        query_rows: QueryRows = None,
        positions: Float[Tensor, "... width"] | None = None,
    ) -> Float[Tensor, "... width"]:
        """Apply the blocks.

        query_rows: indices into the flattened tokens to which the output is restricted, (rows, width). The last block
        then computes only these queries and their MLPs, such as those of the CLS or EOS token. positions: added to the
        input of every block (Point-BERT, Point-MAE).
        """
        for index, block in enumerate(self.blocks, start=1):
            x = x if positions is None else x + positions
            rows = query_rows if index == len(self.blocks) else None
            x = block(x, packing, rows)
        return x if self.blocks else select_rows(x, query_rows)


def select_rows(x: Float[Tensor, "... width"], query_rows: QueryRows) -> Float[Tensor, "... width"]:
    """Select rows of the flattened tokens; None selects all tokens."""
    return x if query_rows is None else x.flatten(0, -2).index_select(0, query_rows)


def mean_pool(packed: Float[Tensor, "total width"], packing: Packing) -> Float[Tensor, "batch width"]:
    """Average the real tokens of each sequence."""
    lengths = packing.mask.sum(1)
    # Segment mean: sum the tokens of each sequence, divide by its length.
    sequence = torch.arange(len(lengths), device=packed.device).repeat_interleave(lengths)
    sums = packed.new_zeros((len(lengths), packed.shape[1])).index_add(0, sequence, packed)
    return sums / lengths[:, None]


def cls_index(packing: Packing) -> Int[Tensor, " batch"]:
    """Return the index of the first token (CLS or BOS) of each sequence among the packed tokens."""
    lengths = packing.mask.sum(1)
    return lengths.cumsum(0) - lengths


def eos_index(packing: Packing) -> Int[Tensor, " batch"]:
    """Return the index of the last real token (EOS) of each sequence among the packed tokens."""
    return packing.mask.sum(1).cumsum(0) - 1
