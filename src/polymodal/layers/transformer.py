"""The transformer of CLIP: pre-norm blocks of self-attention and a GELU perceptron.

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

Only = Int[Tensor, " rows"] | None


@dataclass(frozen=True)
class Packing:
    """Where the tokens of packed sequences stand. mask: True where the rectangle batch x length has a real token.

    document: where a row holds several sequences, the number of each, from 1, and 0 where there is no token; tokens see
    only those of their own document.

    bias: what is added to the logits of attention, the same in all blocks, such as one for distances on a page.
    prefix: of each row, how many of the first tokens are seen by all, also where attention is causal (prefix LM, Raffel
    et al. 2020, section 3.2.1). rotation: what queries and keys are turned by (`layers.positions.rotary_angles`).
    """

    mask: Bool[Tensor, "batch length"]
    places: Int[Tensor, " total"]
    document: Int[Tensor, "batch length"] | None = None
    bias: Float[Tensor, "batch heads length length"] | None = None
    prefix: Int[Tensor, " batch"] | None = None
    rotation: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch length"]) -> Packing:
        """One sequence a row."""
        return cls(mask, mask.flatten().nonzero().squeeze(1))

    @classmethod
    def of_documents(cls, document: Int[Tensor, "batch length"]) -> Packing:
        """Several sequences a row."""
        mask = document > 0
        return cls(mask, mask.flatten().nonzero().squeeze(1), document)

    def visible(self, causal: bool) -> Bool[Tensor, "batch 1 queries keys"] | None:
        """True where a query may look at a key; None where causality alone does it."""
        if self.document is None and (not causal or self.prefix is None):
            # Causal: padding stands behind all that real tokens look at.
            return None if causal else self.mask[:, None, None, :]
        if self.document is None:
            seen = self.mask[:, None, :]
        else:
            seen = self.document[:, :, None] == self.document[:, None, :]
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
        return padded.flatten(0, 1).index_select(0, self.places)

    def pad(self, packed: Tensor) -> Tensor:
        """(total, ...) -> (batch, length, ...), zeros where there is no token."""
        rectangle = packed.new_zeros((self.mask.numel(), *packed.shape[1:]))
        return rectangle.index_copy(0, self.places, packed).unflatten(0, self.mask.shape)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) through scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        if width % heads:
            raise UserError(f"A width of {width} does not divide into {heads} heads.")
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, only: Only = None
    ) -> Float[Tensor, "... width"]:
        """x: (batch, tokens, width), or (total, width) with its packing. only: see `Transformer.forward`."""
        qkv = self.qkv(x)
        if packing is not None:
            qkv = packing.pad(qkv)
        query, key, value = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if packing is not None and packing.rotation is not None:
            query, key = rotate(query, packing.rotation), rotate(key, packing.rotation)
        mask = packing.attention_mask(self.causal) if packing is not None else None
        causal = self.causal and mask is None
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        y = y.transpose(1, 2).flatten(2)
        return self.out(chosen(y if packing is None else packing.pack(y), only))


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


def rising(rate: float, depth: int) -> list[float]:
    """The rates of all blocks, from 0 to that of the last in equal steps."""
    return [rate * number / max(depth - 1, 1) for number in range(depth)]


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int, causal: bool = False, dropout: float = 0.0, ratio: float = 4.0):
        super().__init__()
        hidden = int(ratio * width)
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm_2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.drop_path: nn.Module = nn.Identity()

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, only: Only = None
    ) -> Float[Tensor, "... width"]:
        """only: see `Transformer.forward`."""
        x = chosen(x, only) + self.drop_path(self.dropout(self.attention(self.norm_1(x), packing, only)))
        return x + self.drop_path(self.dropout(self.narrow(F.gelu(self.widen(self.norm_2(x))))))


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + perceptron(x)), as in BERT and RoBERTa."""

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, only: Only = None
    ) -> Float[Tensor, "... width"]:
        """only: see `Transformer.forward`."""
        x = self.norm_1(chosen(x, only) + self.dropout(self.attention(x, packing, only)))
        return self.norm_2(x + self.dropout(self.narrow(F.gelu(self.widen(x)))))


class Transformer(nn.Module):
    """A stack of blocks with the initialisation of CLIP (Radford et al. 2021, section 2.4 and released code)."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        kind: type[Block] = Block,
        drop_path: float = 0.0,
    ):
        """drop_path: see `DropPath`; that of the last block, to which it rises from 0 in equal steps."""
        super().__init__()
        blocks = [kind(width, heads, causal, dropout) for _ in range(depth)]
        if drop_path:
            for block, rate in zip(blocks, rising(drop_path, depth), strict=True):
                block.drop_path = DropPath(rate)
        residual_std = width**-0.5 * (2 * max(depth, 1)) ** -0.5
        for block in blocks:
            linears = {
                block.attention.qkv: width**-0.5,
                block.attention.out: residual_std,
                block.widen: (2 * width) ** -0.5,
                block.narrow: residual_std,
            }
            for linear, std in linears.items():
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False  # whether blocks keep no activations, but compute them again in the backward pass

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, only: Only = None
    ) -> Float[Tensor, "... width"]:
        """only: rows of the flattened tokens, where nothing but these is wanted; (rows, width) is returned.

        The last block then asks for nothing else, which saves three quarters of its products.
        """
        for number, block in enumerate(self.blocks, start=1):
            wanted = only if number == len(self.blocks) else None
            if self.recompute and self.training:
                x = checkpoint(block, x, packing, wanted, use_reentrant=False)
            else:
                x = block(x, packing, wanted)
        return x if self.blocks else chosen(x, only)


def chosen(x: Float[Tensor, "... width"], only: Only) -> Float[Tensor, "... width"]:
    """These rows of the flattened tokens; all tokens where none are named."""
    return x if only is None else x.flatten(0, -2).index_select(0, only)


def mean_of_tokens(packed: Float[Tensor, "total width"], packing: Packing) -> Float[Tensor, "batch width"]:
    """The mean over each sequence's real tokens."""
    lengths = packing.mask.sum(1)
    sequence = torch.arange(len(lengths), device=packed.device).repeat_interleave(lengths)
    sums = packed.new_zeros((len(lengths), packed.shape[1])).index_add(0, sequence, packed)
    return sums / lengths[:, None]


def first_rows(packing: Packing) -> Int[Tensor, " batch"]:
    """Where the first token of each sequence stands among the packed: the start mark, or BERT's class token."""
    lengths = packing.mask.sum(1)
    return lengths.cumsum(0) - lengths


def last_rows(packing: Packing) -> Int[Tensor, " batch"]:
    """Where the last real token of each sequence stands among the packed: the end mark."""
    return packing.mask.sum(1).cumsum(0) - 1
