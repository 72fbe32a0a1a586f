"""The transformer of CLIP: pre-norm blocks of self-attention and a GELU MLP.

A batch is either dense (every sequence has the same number of tokens) or packed: the real tokens of all sequences in
one row, so that no layer computes padding. Only attention lays packed sequences out in a rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polymodal.errors import UserError
from polymodal.layers.positions import rotate

QueryRows = Int[Tensor, " rows"] | None


@dataclass(frozen=True)
class Packing:
    """Where the tokens of packed sequences stand. mask: True where the rectangle batch x length has a real token.

    segment_ids: where a row holds several sequences, the number of each, from 1, and 0 where there is no token; tokens
    see only those of their own document.

    bias: what is added to the logits of attention, the same in all blocks, such as one for distances on a page.
    prefix: of each row, how many of the first tokens are seen by all, also where attention is causal (prefix LM, Raffel
    et al. 2020, section 3.2.1). rotation: what queries and keys are turned by (`layers.positions.rotary_angles`).
    """

    mask: Bool[Tensor, "batch length"]
    indices: Int[Tensor, " total"]
    segment_ids: Int[Tensor, "batch length"] | None = None
    bias: Float[Tensor, "batch heads length length"] | None = None
    prefix: Int[Tensor, " batch"] | None = None
    rotation: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch length"]) -> Packing:
        """One sequence a row."""
        return cls(mask, mask.flatten().nonzero().squeeze(1))

    @classmethod
    def of_segments(cls, segment_ids: Int[Tensor, "batch length"]) -> Packing:
        """Several sequences a row."""
        mask = segment_ids > 0
        return cls(mask, mask.flatten().nonzero().squeeze(1), segment_ids)

    def visible(self, causal: bool) -> Bool[Tensor, "batch 1 queries keys"] | None:
        """True where a query may look at a key; None where causality alone does it."""
        if self.segment_ids is None and (not causal or self.prefix is None):
            # Causal: padding stands behind all that real tokens look at.
            return None if causal else self.mask[:, None, None, :]
        if self.segment_ids is None:
            seen = self.mask[:, None, :]
        else:
            seen = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
        if causal:
            place = torch.arange(self.mask.shape[1], device=self.mask.device)
            order = place <= place[:, None]
            seen = seen & (order if self.prefix is None else order | (place < self.prefix[:, None, None]))
        return seen[:, None]

    def attention_mask(self, causal: bool) -> Tensor | None:
        """What scaled_dot_product_attention takes: booleans, or logits to add; None where causality alone does it."""
        visible = self.visible(causal)
        if self.bias is None:
            return visible
        if visible is None:
            length = self.mask.shape[1]
            visible = self.mask.new_ones(length, length).tril()
        return self.bias.masked_fill(~visible, float("-inf"))

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, length, ...) -> (total, ...)."""
        return padded.flatten(0, 1).index_select(0, self.indices)

    def pad(self, packed: Tensor) -> Tensor:
        """(total, ...) -> (batch, length, ...), zeros where there is no token."""
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
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """x: (batch, tokens, width), or (total, width) with its packing. query_rows: see `Transformer.forward`."""
        qkv = self.qkv(x)
        if packing is not None:
            qkv = packing.pad(qkv)
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if packing is not None and packing.rotation is not None:
            query, key = rotate(query, packing.rotation), rotate(key, packing.rotation)
        mask = packing.attention_mask(self.causal) if packing is not None else None
        causal = self.causal and mask is None
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        y = y.transpose(1, 2).flatten(2)
        return self.out(select_rows(y if packing is None else packing.pack(y), query_rows))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): while training, an example skips a branch with a probability.

    For dense batches, or one row an example: in a packed row, examples are not apart.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "batch *length width"]) -> Float[Tensor, "batch *length width"]:
        if not (self.training and self.rate):
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


def drop_path_schedule(rate: float, depth: int) -> list[float]:
    """The rates of all blocks, from 0 to that of the last in equal steps."""
    return [rate * number / max(depth - 1, 1) for number in range(depth)]


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

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
        """query_rows: see `Transformer.forward`."""
        x = select_rows(x, query_rows) + self.drop_path(
            self.dropout(self.attention(self.norm1(x), packing, query_rows))
        )
        return x + self.drop_path(self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x))))))


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + MLP(x)), as in BERT and RoBERTa."""

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """query_rows: see `Transformer.forward`."""
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
    ):
        """drop_path_rate: see `DropPath`; that of the last block, to which it rises from 0 in equal steps."""
        super().__init__()
        blocks = [kind(width, num_heads, causal, dropout) for _ in range(depth)]
        if drop_path_rate:
            for block, rate in zip(blocks, drop_path_schedule(drop_path_rate, depth), strict=True):
                block.drop_path = DropPath(rate)
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
                nn.init.zeros_(linear.bias)
        self.blocks = nn.ModuleList(blocks)
        self.activation_checkpointing = False  # compute activations again in the backward pass

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """query_rows: rows of the flattened tokens, where nothing but these is wanted; (rows, width) is returned.

        The last block then asks for nothing else, which saves three quarters of its products.
        """
        for number, block in enumerate(self.blocks, start=1):
            wanted = query_rows if number == len(self.blocks) else None
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, packing, wanted, use_reentrant=False)
            else:
                x = block(x, packing, wanted)
        return x if self.blocks else select_rows(x, query_rows)


def select_rows(x: Float[Tensor, "... width"], query_rows: QueryRows) -> Float[Tensor, "... width"]:
    """These rows of the flattened tokens; all tokens where none are named."""
    return x if query_rows is None else x.flatten(0, -2).index_select(0, query_rows)


def mean_pool(packed: Float[Tensor, "total width"], packing: Packing) -> Float[Tensor, "batch width"]:
    """The mean over each sequence's real tokens."""
    lengths = packing.mask.sum(1)
    sequence = torch.arange(len(lengths), device=packed.device).repeat_interleave(lengths)
    sums = packed.new_zeros((len(lengths), packed.shape[1])).index_add(0, sequence, packed)
    return sums / lengths[:, None]


def cls_index(packing: Packing) -> Int[Tensor, " batch"]:
    """Where the first token of each sequence stands among the packed: the start mark, or BERT's class token."""
    lengths = packing.mask.sum(1)
    return lengths.cumsum(0) - lengths


def eos_index(packing: Packing) -> Int[Tensor, " batch"]:
    """Where the last real token of each sequence stands among the packed: the end mark."""
    return packing.mask.sum(1).cumsum(0) - 1
