"""Causal text decoder with cross-attention to an image: BLIP's image-grounded decoder, and CoCa's two halves.

BLIP (Li et al. 2022, section 3.1): every block has cross-attention. CoCa (Yu et al. 2022, section 3.2 and figure 2):
the lower blocks encode text alone, with a class token behind it for contrast; the upper ones read the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveInt
from polymodal.errors import UserError
from polymodal.layers.cross_attention import CrossAttentionBlock, KeyValue, causal_mask, init_transformer
from polymodal.layers.decoding import Decoding
from polymodal.layers.generation import generate_tokens
from polymodal.layers.masked_lm_head import MaskedLMHead


@dataclass(frozen=True)
class CausalDecoderConfig:
    """A causal text decoder."""

    vocab_size: PositiveInt = 8000
    """Entries of the tokenizer."""
    context_length: PositiveInt = 64
    """Longest text in tokens."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: PositiveInt = 2
    """Blocks."""
    unimodal_depth: NonNegativeInt = 0
    """First blocks, which have no cross-attention: half of them in CoCa, none in BLIP."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    class_token: bool = False
    """Whether a class token stands behind the text; its state after the unimodal blocks embeds the text (CoCa)."""
    norm: Literal["pre", "post"] = "pre"
    """Whether branches are normalized before, or sums after them, as in BERT."""
    head: Literal["linear", "bert"] = "linear"
    """From states to logits, both with the token embeddings: a product, or BERT's MLP before it (BLIP)."""
    dropout: DecayRate = 0.0
    """After attention and MLPs."""
    label_smoothing: DecayRate = 0.0
    """Fraction of the target that is spread over the vocabulary; 0.1 in BLIP."""

    def __post_init__(self) -> None:
        if self.unimodal_depth > self.depth:
            raise UserError(f"A unimodal_depth of {self.unimodal_depth} is more than the depth of {self.depth} blocks.")
        if self.class_token and not self.unimodal_depth:
            raise UserError("A class token stands behind unimodal blocks; set a unimodal_depth.")

    def build(self, context_width: int) -> CausalDecoder:
        """context_width: of the image tokens that come in."""
        return CausalDecoder(self, context_width)


class UnimodalText(NamedTuple):
    """tokens: states of the text after the unimodal blocks. pooled: of the class token; without one, of the last real
    token."""

    tokens: Float[Tensor, "batch length width"]
    pooled: Float[Tensor, "batch width"]


@dataclass
class DecoderCache:
    """Keys and values of every block: of the text so far, and of the image, which are computed once.

    mask: True for tokens of the text so far, False for padding.
    """

    own: list[KeyValue]
    context: list[KeyValue | None]
    context_mask: Bool[Tensor, "batch keys"] | None
    mask: Bool[Tensor, "batch past"]
    position: Int[Tensor, " batch"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep these rows of the batch, such as the best beams."""
        self.own = [known.select(rows) for known in self.own]
        self.context = [known and known.select(rows) for known in self.context]
        self.context_mask = None if self.context_mask is None else self.context_mask[rows]
        self.mask, self.position = self.mask[rows], self.position[rows]


class CausalDecoder(nn.Module):
    """Token and position embeddings, unimodal blocks, blocks with cross-attention, and the head."""

    def __init__(self, config: CausalDecoderConfig, context_width: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.pos_embed = nn.Embedding(config.context_length, config.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(config.width)) if config.class_token else None
        post = config.norm == "post"
        self.norm_pre = nn.LayerNorm(config.width) if post else nn.Identity()  # as BERT's embeddings
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(
                config.width,
                config.num_heads,
                context_width,
                None,
                config.norm,
                config.dropout,
                index >= config.unimodal_depth,
            )
            for index in range(config.depth)
        )
        self.class_norm = nn.LayerNorm(config.width) if config.class_token and not post else nn.Identity()
        self.norm_post = nn.Identity() if post else nn.LayerNorm(config.width)
        self.head = MaskedLMHead(config.width, config.vocab_size) if config.head == "bert" else None
        init_transformer(self)

    def encode_text(self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]) -> UnimodalText:
        """The text alone, through the unimodal blocks; through all of them, without cross-attention, where there are
        none (BLIP)."""
        depth = self.config.unimodal_depth or self.config.depth
        x, visible = self._embedded(ids, mask)
        if self.class_token is not None:
            x = torch.cat([x, self.class_token.expand(len(x), 1, -1)], dim=1)
            # The class token attends to the whole text; no token of the text attends to it (CoCa, section 3.2).
            visible = F.pad(visible, (0, 1, 0, 1))
            visible[:, -1, :-1] = mask
            visible[:, -1, -1] = True
        for block in self.blocks[:depth]:
            x = block(x, mask=visible)
        if self.class_token is not None:
            return UnimodalText(x[:, :-1], self.class_norm(x[:, -1]))
        position = torch.arange(ids.shape[1], device=ids.device)
        last = (position * mask).amax(1)
        return UnimodalText(x, x[torch.arange(len(x), device=x.device), last])

    def decode(
        self,
        tokens: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "batch length"],
        context: Float[Tensor, "batch keys context_width"],
        context_mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """States for `logits`: what `encode_text` gave, through the blocks with cross-attention (CoCa)."""
        visible = causal_mask(mask)
        for block in self.blocks[self.config.unimodal_depth :]:
            tokens = block(tokens, context, visible, context_mask)
        return self.norm_post(tokens)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        context: Float[Tensor, "batch keys context_width"],
        context_mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """States for `logits`, of all blocks. mask, context_mask: False for padding, which changes nothing."""
        x, visible = self._embedded(ids, mask)
        for index, block in enumerate(self.blocks):
            x = block(x, context if index >= self.config.unimodal_depth else None, visible, context_mask)
        return self.norm_post(x)

    def logits(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Of the next token."""
        weight = self.token_embedding.weight
        if self.head is None:
            return F.linear(states, weight)
        return self.head(states.reshape(-1, states.shape[-1]), weight).reshape(*states.shape[:-1], -1)

    def lm_loss(
        self,
        states: Float[Tensor, "batch length width"],
        ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        predicted: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of every real token but the first, given those before it; 0 where there is none.

        predicted: of these, the tokens that count, such as those behind a prompt; by default all.
        """
        wanted = (mask if predicted is None else mask & predicted)[:, 1:]
        targets = ids[:, 1:][wanted]
        logits = self.logits(states[:, :-1][wanted])
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)
        return loss / max(len(targets), 1)

    @torch.no_grad()
    def generate_text(
        self,
        ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        context: Float[Tensor, "batch keys context_width"],
        context_mask: Bool[Tensor, "batch keys"] | None,
        end: int,
        decoding: Decoding,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Continuations of prompts, such as of a start token alone, up to the end token, which is not among them.

        ids, mask: prompts that end in the last column, with padding before them. Raises UserError where prompt and text
        are longer than the context.
        """
        if ids.shape[1] + decoding.max_new_tokens - 1 > self.config.context_length:
            raise UserError(
                f"A prompt of {ids.shape[1]} tokens and {decoding.max_new_tokens} new ones do not fit into a context "
                f"of {self.config.context_length}; generate fewer."
            )
        cache = self._cache(context, context_mask)

        def step(token: Tensor) -> Tensor:
            return self._next(token[:, None], torch.ones_like(token, dtype=torch.bool)[:, None], cache)

        return generate_tokens(self._next(ids, mask, cache), step, cache.select, end, decoding, generator)

    def _next(self, ids: Tensor, mask: Tensor, cache: DecoderCache) -> Float[Tensor, "batch vocabulary"]:
        """Logits after new tokens, which are added to the cache."""
        past, length = cache.mask.shape[1], ids.shape[1]
        cache.mask = torch.cat([cache.mask, mask], dim=1)
        visible = cache.mask[:, None] & mask.new_ones(length, past + length).tril(past)
        position = cache.position[:, None] + mask.cumsum(1) - 1
        cache.position = cache.position + mask.sum(1)
        x = self._at(ids, position.clamp(min=0))
        for index, block in enumerate(self.blocks):
            assert isinstance(block, CrossAttentionBlock)
            new, known = block.self_attention.project(block.normed(x)), cache.own[index]
            own = KeyValue(torch.cat([known.keys, new.keys], dim=2), torch.cat([known.values, new.values], dim=2))
            cache.own[index] = own
            x = block(x, cache.context[index], visible, cache.context_mask, own)
        return self.logits(self.norm_post(x[:, -1]))

    def _cache(self, context: Tensor, context_mask: Tensor | None) -> DecoderCache:
        batch, heads = len(context), self.config.num_heads
        empty = context.new_zeros(batch, heads, 0, self.config.width // heads)
        blocks = [block for block in self.blocks if isinstance(block, CrossAttentionBlock)]
        crossing = [block.cross_attention for block in blocks]
        known = [None if attention is None else attention.project(context) for attention in crossing]
        nothing = torch.zeros(batch, 0, dtype=torch.bool, device=context.device)
        position = torch.zeros(batch, dtype=torch.long, device=context.device)
        return DecoderCache([KeyValue(empty, empty)] * len(blocks), known, context_mask, nothing, position)

    def _embedded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the tokens, and who attends to whom. Positions count real tokens."""
        return self._at(ids, (mask.cumsum(1) - 1).clamp(min=0)), causal_mask(mask)

    def _at(self, ids: Tensor, position: Tensor) -> Tensor:
        return self.dropout(self.norm_pre(self.token_embedding(ids) + self.pos_embed(position)))
