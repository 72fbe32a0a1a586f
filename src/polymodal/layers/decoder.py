"""Llama-style decoder (Touvron et al. 2023): grouped-query attention, RoPE, RMSNorm, SwiGLU, KV cache.

A row may hold several documents (sequence packing), which do not attend to each other. A KV cache holds the keys and
values of earlier tokens for incremental decoding.
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

ExpertAssignment = Sequence[Int[Tensor, " _"]]  # for each expert, indices of its tokens in the flattened batch


class LayerKVCache(NamedTuple):
    """KV cache of one block. length: number of filled positions.

    key_mask: False for tokens that skipped the block (mixture of depths).
    """

    keys: Float[Tensor, "batch num_kv_heads max_length head_dim"]
    values: Float[Tensor, "batch num_kv_heads max_length head_dim"]
    key_mask: Bool[Tensor, "batch max_length"]
    length: int


@dataclass
class KVCache:
    """KV cache of all blocks.

    document: 0 where a row has no token. key_mask: see `LayerKVCache`. length: filled positions, the same in all rows.
    """

    keys: Float[Tensor, "blocks batch num_kv_heads max_length head_dim"]
    values: Float[Tensor, "blocks batch num_kv_heads max_length head_dim"]
    key_mask: Bool[Tensor, "blocks batch max_length"]
    document: Int[Tensor, "batch max_length"]
    length: int = 0

    def select(self, rows: Int[Tensor, " rows"]) -> KVCache:
        """Return the cache of these rows, for example of the best beams."""
        keys, values, key_mask = (tensor.index_select(1, rows) for tensor in (self.keys, self.values, self.key_mask))
        return KVCache(keys, values, key_mask, self.document[rows], self.length)

    def layer(self, block: int, length: int) -> LayerKVCache:
        """Return the cache of one block. length: positions that were filled before this step."""
        return LayerKVCache(self.keys[block], self.values[block], self.key_mask[block], length)


class GroupedQueryAttention(nn.Module):
    """Causal grouped-query attention (GQA): groups of query heads share keys and values (Ainslie et al. 2023)."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, bias: bool = False):
        """Build the projections.

        num_kv_heads: key-value heads; num_heads gives multi-head attention, 1 multi-query attention. bias: whether
        query, key and value projections have one.
        """
        super().__init__()
        if width % num_heads or num_heads % num_kv_heads:
            raise UserError(f"A width of {width}, {num_heads} heads and {num_kv_heads} groups do not divide.")
        self.num_kv_heads = num_kv_heads
        self.head_dim = width // num_heads
        self.sizes = [width, num_kv_heads * self.head_dim, num_kv_heads * self.head_dim]
        self.qkv = nn.Linear(width, sum(self.sizes), bias=bias)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Bool[Tensor, "batch 1 length keys"] | None,
        kv_cache: LayerKVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Attend causally. visible: None for a causal mask alone. kv_cache: extended in place by the keys and values of
        x."""
        query, key, value = (
            part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(x).split(self.sizes, dim=2)
        )
        # RoPE is applied before caching, so that cached keys keep the angles of their own positions.
        query, key = rotate(query, angles), rotate(key, angles)
        length = x.shape[1]
        if kv_cache is not None:
            keys, values, _, start = kv_cache
            # Append to the cache in place and attend to everything in it.
            keys[:, :, start : start + length] = key
            values[:, :, start : start + length] = value
            key, value = keys[:, :, : start + length], values[:, :, : start + length]
        if length == 1:  # one query: fold the heads of a group into the query axis instead of repeating keys
            grouped = query.unflatten(1, (self.num_kv_heads, -1)).squeeze(3)
            y = F.scaled_dot_product_attention(grouped, key, value, attn_mask=visible).flatten(1, 2).unsqueeze(2)
        else:
            repeats = query.shape[1] // self.num_kv_heads
            # Repeat each key-value head for the query heads of its group.
            key, value = (part.repeat_interleave(repeats, 1) if repeats > 1 else part for part in (key, value))
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=visible is None)
        return self.out(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """SwiGLU MLP: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class ModalityExperts(nn.Module):
    """Modality-specific feed-forward experts with hard routing: a token goes through its own modality's MLP (VLMo)."""

    def __init__(self, experts: Mapping[str, nn.Module]):
        super().__init__()
        self.modalities = tuple(experts)
        for name, expert in experts.items():
            self.add_module(name, expert)

    def forward(
        self, x: Float[Tensor, "... width"], routes: ExpertAssignment | None = None
    ) -> Float[Tensor, "... width"]:
        """Apply each token's expert.

        routes: token indices by modality, in the order of `modalities`; None sends all tokens to the first expert.
        Tokens on no route, such as padding, become 0.
        """
        experts = [self.get_submodule(name) for name in self.modalities]
        flat = x.flatten(0, -2)
        if routes is None:
            return experts[0](flat).view_as(x)
        # An expert without tokens still runs, so that its gradients are zeros rather than None, as DDP and FSDP need.
        outputs = [expert(flat.index_select(0, tokens)) for expert, tokens in zip(experts, routes, strict=True)]
        gathered, indices = torch.cat(outputs), torch.cat(list(routes))
        result = (
            torch.empty_like(gathered) if len(indices) == len(flat) else torch.zeros_like(flat, dtype=gathered.dtype)
        )
        return result.index_copy(0, indices, gathered).view_as(x)


class DecoderBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, attention: GroupedQueryAttention, feed_forward: ModalityExperts, width: int, norm_eps: float):
        super().__init__()
        self.norm1 = nn.RMSNorm(width, norm_eps)
        self.attention = attention
        self.norm2 = nn.RMSNorm(width, norm_eps)
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Tensor | None,
        routes: ExpertAssignment | None,
        kv_cache: LayerKVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        x = x + self.attention(self.norm1(x), angles, visible, kv_cache)
        return x + self.feed_forward(self.norm2(x), routes)


class PostSubLayerNormBlock(DecoderBlock):
    """Block with norms after the sublayers: x + norm(attention(x)), then x + norm(MLP(x)) (Swin V2, Chameleon)."""

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        angles: tuple[Tensor, Tensor],
        visible: Tensor | None,
        routes: ExpertAssignment | None,
        kv_cache: LayerKVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        x = x + self.norm1(self.attention(x, angles, visible, kv_cache))
        return x + self.norm2(self.feed_forward(x, routes))


class Decoder(nn.Module):
    """A stack of decoder blocks and a final RMSNorm."""

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        num_kv_heads: int,
        feed_forward: Callable[[], ModalityExperts],
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-6,
        attention_bias: bool = False,
        block: type[DecoderBlock] = DecoderBlock,
    ):
        """Build the decoder. feed_forward: factory of the MLP of a block."""
        super().__init__()
        self.num_kv_heads = num_kv_heads
        self.head_dim = width // num_heads
        self.rope_theta = rope_theta
        self.blocks = nn.ModuleList(
            block(
                GroupedQueryAttention(width, num_heads, num_kv_heads, attention_bias), feed_forward(), width, norm_eps
            )
            for _ in range(depth)
        )
        self.norm_post = nn.RMSNorm(width, norm_eps)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:  # 2-D weights, or 3-D for stacked experts
                # Projections into the residual stream are scaled by 1 / sqrt(2 * depth), as in GPT-2.
                into_residual = name.endswith(("out.weight", "down.weight", "down"))
                nn.init.normal_(parameter, std=0.02 * (2 * depth) ** -0.5 if into_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def experts(self) -> list[ModalityExperts]:
        """Return the feed-forward experts of all blocks."""
        return [block.feed_forward for block in self.modules() if isinstance(block, DecoderBlock)]

    def cache(self, batch: int, max_length: int) -> KVCache:
        """Return an empty KV cache with the dtype and device of the weights."""
        like = self.norm_post.weight
        keys = like.new_zeros(len(self.blocks), batch, self.num_kv_heads, max_length, self.head_dim)
        key_mask = torch.ones(len(self.blocks), batch, max_length, dtype=torch.bool, device=like.device)
        return KVCache(keys, torch.zeros_like(keys), key_mask, torch.zeros_like(key_mask[0], dtype=torch.long))

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        position: Int[Tensor, "batch length"],
        document: Int[Tensor, "batch length"],
        routes: ExpertAssignment | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Return the hidden states of all positions.

        position: index within the document, for RoPE. document: segment id within the row, 0 where there is no token.
        routes: see `ModalityExperts`. cache: KV cache of earlier tokens, extended in place.
        """
        length = x.shape[1]
        past = 0
        documents = document
        if cache is not None:
            # Queries are the new tokens; keys are the cached and the new ones.
            past = cache.length
            cache.document[:, past : past + length] = document
            cache.length += length
            documents = cache.document[:, : cache.length]
        # Block-diagonal mask: a token attends to tokens of its own document only.
        visible = (document[:, :, None] == documents[:, None, :])[:, None]
        if length > 1:
            visible = visible.tril(past)
        angles = rotary_angles(position, self.head_dim, self.rope_theta, x)
        for index, block in enumerate(self.blocks):
            x = block(x, angles, visible, routes, cache.layer(index, past) if cache is not None else None)
        return self.norm_post(x)
