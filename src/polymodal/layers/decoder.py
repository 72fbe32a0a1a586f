"""The decoder of Llama (Touvron et al. 2023): grouped-query attention, rotary positions, RMSNorm and SwiGLU.

Rows of tokens may hold several documents, which never see each other, and keys and values of what was read can be kept
while words are added one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.positions import rotary_angles, rotate

Routes = Sequence[Int[Tensor, " _"]]  # for each expert, the numbers of its tokens among those of all rows


class Kept(NamedTuple):
    """What a block has read. taken: how many places. passed: which tokens went through the block, where some do not."""

    keys: Float[Tensor, "batch groups room size"]
    values: Float[Tensor, "batch groups room size"]
    passed: Bool[Tensor, "batch room"]
    taken: int


@dataclass
class Cache:
    """Keys and values of every block, for what was read so far.

    document: 0 where a row has no token. passed: see `Kept`. length: places that are taken, the same in all rows.
    """

    keys: Float[Tensor, "blocks batch groups room size"]
    values: Float[Tensor, "blocks batch groups room size"]
    passed: Bool[Tensor, "blocks batch room"]
    document: Int[Tensor, "batch room"]
    length: int = 0

    def select(self, rows: Int[Tensor, " rows"]) -> Cache:
        """The cache of these rows, such as the best beams."""
        keys, values, passed = (kept.index_select(1, rows) for kept in (self.keys, self.values, self.passed))
        return Cache(keys, values, passed, self.document[rows], self.length)

    def of(self, block: int, taken: int) -> Kept:
        """That of one block, of which so many places were taken before."""
        return Kept(self.keys[block], self.values[block], self.passed[block], taken)


class GroupedQueryAttention(nn.Module):
    """Causal attention in which groups of heads share keys and values (Ainslie et al. 2023)."""

    def __init__(self, width: int, heads: int, groups: int, bias: bool = False):
        """groups: heads of keys and values; as many as heads is multi-head attention. bias: of all three."""
        super().__init__()
        if width % heads or heads % groups:
            raise UserError(f"A width of {width}, {heads} heads and {groups} groups do not divide.")
        self.groups = groups
        self.size = width // heads
        self.sizes = [width, groups * self.size, groups * self.size]
        self.qkv = nn.Linear(width, sum(self.sizes), bias=bias)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Bool[Tensor, "batch 1 length keys"] | None,
        kept: Kept | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """visible: None for causality alone. kept: what was read before, to which this is added."""
        query, key, value = (
            part.unflatten(2, (-1, self.size)).transpose(1, 2) for part in self.qkv(x).split(self.sizes, dim=2)
        )
        query, key = rotate(query, angles), rotate(key, angles)
        length = x.shape[1]
        if kept is not None:
            keys, values, _, taken = kept
            keys[:, :, taken : taken + length] = key
            values[:, :, taken : taken + length] = value
            key, value = keys[:, :, : taken + length], values[:, :, : taken + length]
        if length == 1:  # the heads of a group ask together: no key is repeated for them
            asked = query.unflatten(1, (self.groups, -1)).squeeze(3)
            y = F.scaled_dot_product_attention(asked, key, value, attn_mask=visible).flatten(1, 2).unsqueeze(2)
        else:
            shared = query.shape[1] // self.groups
            key, value = (part.repeat_interleave(shared, 1) if shared > 1 else part for part in (key, value))
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=visible is None)
        return self.out(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class ModalityExperts(nn.Module):
    """A perceptron for each modality; every token goes through its own modality's only."""

    def __init__(self, experts: Mapping[str, nn.Module]):
        super().__init__()
        self.modalities = tuple(experts)
        for name, expert in experts.items():
            self.add_module(name, expert)

    def forward(self, x: Float[Tensor, "... width"], routes: Routes | None = None) -> Float[Tensor, "... width"]:
        """routes: by modality, in the order of `modalities`; without any, all tokens are the first one's.

        A token on no route, such as padding, gets 0.
        """
        experts = [self.get_submodule(name) for name in self.modalities]
        flat = x.flatten(0, -2)
        if routes is None:
            return experts[0](flat).view_as(x)
        # An expert without a token runs on nothing and gets zeros for gradients, which parallel training counts on.
        found = [expert(flat.index_select(0, tokens)) for expert, tokens in zip(experts, routes, strict=True)]
        gathered, places = torch.cat(found), torch.cat(list(routes))
        whole = torch.empty_like(gathered) if len(places) == len(flat) else torch.zeros_like(flat, dtype=gathered.dtype)
        return whole.index_copy(0, places, gathered).view_as(x)


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, attention: GroupedQueryAttention, feed_forward: ModalityExperts, width: int, epsilon: float):
        super().__init__()
        self.norm_1 = nn.RMSNorm(width, epsilon)
        self.attention = attention
        self.norm_2 = nn.RMSNorm(width, epsilon)
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Tensor | None,
        routes: Routes | None,
        kept: Kept | None = None,
    ) -> Float[Tensor, "batch length width"]:
        x = x + self.attention(self.norm_1(x), angles, visible, kept)
        return x + self.feed_forward(self.norm_2(x), routes)


class OutputNormBlock(DecoderBlock):
    """x + norm(attention(x)), then x + norm(perceptron(x)), as in Swin V2 and Chameleon."""

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Tensor | None,
        routes: Routes | None,
        kept: Kept | None = None,
    ) -> Float[Tensor, "batch length width"]:
        x = x + self.norm_1(self.attention(x, angles, visible, kept))
        return x + self.norm_2(self.feed_forward(x, routes))


class Decoder(nn.Module):
    """A stack of blocks, and the norm after them."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        groups: int,
        feed_forward: Callable[[], ModalityExperts],
        rotary_base: float = 10_000.0,
        epsilon: float = 1e-6,
        attention_bias: bool = False,
        block: type[DecoderBlock] = DecoderBlock,
    ):
        """feed_forward: makes the perceptron of a block."""
        super().__init__()
        self.groups = groups
        self.size = width // heads
        self.rotary_base = rotary_base
        self.blocks = nn.ModuleList(
            block(GroupedQueryAttention(width, heads, groups, attention_bias), feed_forward(), width, epsilon)
            for _ in range(depth)
        )
        self.norm_after = nn.RMSNorm(width, epsilon)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:  # of several experts at once where there are three
                into_residual = name.endswith(("out.weight", "down.weight", "down"))
                nn.init.normal_(parameter, std=0.02 * (2 * depth) ** -0.5 if into_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def experts(self) -> list[ModalityExperts]:
        """The perceptrons of every block."""
        return [block.feed_forward for block in self.modules() if isinstance(block, DecoderBlock)]

    def cache(self, batch: int, room: int) -> Cache:
        """An empty one, for so many rows and places, of the type and on the device of the weights."""
        like = self.norm_after.weight
        keys = like.new_zeros(len(self.blocks), batch, self.groups, room, self.size)
        passed = torch.ones(len(self.blocks), batch, room, dtype=torch.bool, device=like.device)
        return Cache(keys, torch.zeros_like(keys), passed, torch.zeros_like(passed[0], dtype=torch.long))

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: Routes | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """What every place knows of its document up to itself.

        position: in its document. document: its number in the row, 0 where there is no token. routes: for experts.
        cache: what was read before, to which this is added.
        """
        length = x.shape[1]
        past = 0
        documents = document
        if cache is not None:
            past = cache.length
            cache.document[:, past : past + length] = document
            cache.length += length
            documents = cache.document[:, : cache.length]
        visible = (document[:, :, None] == documents[:, None, :])[:, None]
        if length > 1:
            visible = visible.tril(past)
        angles = rotary_angles(position, self.size, self.rotary_base, x)
        for number, block in enumerate(self.blocks):
            x = block(x, angles, visible, routes, cache.of(number, past) if cache is not None else None)
        return self.norm_after(x)
