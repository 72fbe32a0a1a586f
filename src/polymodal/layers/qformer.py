"""Q-Former: learned queries that attend to an image, in one transformer with text (BLIP-2, Li et al. 2023, section
3.1).

Queries and text share self-attention; every `cross_attention_frequency`-th block has cross-attention from the queries
to the image; MLPs are separate. The self-attention mask between queries and text selects one of three objectives
(figure 2): image-text contrastive (ITC), image-text matching (ITM), image-grounded text generation (ITG).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveFloat, PositiveInt
from polymodal.errors import UserError
from polymodal.layers.cross_attention import CrossAttention, init_transformer, mlp

QFormerMode = Literal["itc", "itm", "itg"]


@dataclass(frozen=True)
class QFormerConfig:
    """Configuration of a Q-Former."""

    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: PositiveInt = 2
    """Number of blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    mlp_dim: PositiveInt = 256
    """Hidden width of the MLPs."""
    num_queries: PositiveInt = 32
    """Number of learned queries."""
    media_width: PositiveInt = 64
    """Width of the image tokens."""
    cross_attention_frequency: PositiveInt = 2
    """Cross-attention is in the first block and every so many blocks after it."""
    vocab_size: NonNegativeInt = 0
    """Vocabulary size of the tokenizer; 0: no text branch, as in the second stage of BLIP-2."""
    context_length: PositiveInt = 64
    """Maximum text length in tokens."""
    norm_eps: PositiveFloat = 1e-12
    """Epsilon of the layer norms, as in BERT."""
    dropout: DecayRate = 0.0
    """Dropout after attention and MLPs; 0.1 in BERT."""


def qformer_mask(
    num_queries: int, text_mask: Bool[Tensor, "batch length"], mode: QFormerMode
) -> Bool[Tensor, "batch total total"]:
    """Return the self-attention mask over [queries; text] (figure 2, right). text_mask: False for padding.

    itc, uni-modal: queries attend to queries, text to text. itm, bidirectional: all attend to all. itg, multimodal
    causal: queries attend to queries, a text token to queries and to text up to itself.
    """
    batch, length = text_mask.shape
    mask = text_mask.new_zeros(batch, num_queries + length, num_queries + length)
    queries, text = slice(None, num_queries), slice(num_queries, None)
    mask[:, queries, queries] = True
    mask[:, text, text] = text_mask[:, None]
    if mode == "itm":
        mask[:, queries, text] = text_mask[:, None]
    if mode == "itg":
        mask[:, text, text] &= text_mask.new_ones(length, length).tril()
    if mode != "itc":
        mask[:, text, queries] = True
    return mask


class QFormerBlock(nn.Module):
    """BERT's post-norm block, with cross-attention and a separate MLP for the queries."""

    def __init__(self, config: QFormerConfig, cross_attention: bool):
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.attention = CrossAttention(width, config.num_heads)
        self.norm1 = nn.LayerNorm(width, eps)
        self.cross_attention = CrossAttention(width, config.num_heads, config.media_width) if cross_attention else None
        self.norm_cross = nn.LayerNorm(width, eps) if cross_attention else None
        self.query_mlp = mlp(width, config.mlp_dim)
        self.query_norm = nn.LayerNorm(width, eps)
        self.text_mlp = mlp(width, config.mlp_dim) if config.vocab_size else None
        self.text_norm = nn.LayerNorm(width, eps) if config.vocab_size else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch total width"],
        num_queries: int,
        mask: Bool[Tensor, "batch total context"] | None,
        media: Float[Tensor, "batch tokens media_width"] | None,
        media_mask: Bool[Tensor, "batch tokens"] | None,
        prefix: Float[Tensor, "batch prefix width"] | None = None,
    ) -> Float[Tensor, "batch total width"]:
        """Apply the block. x: queries, then text; either may be absent. prefix: states of queries before x, which x
        attends to; the mask then covers them, too."""
        # Shared self-attention of queries and text; the mask selects ITC, ITM or ITG.
        context = x if prefix is None else torch.cat([prefix, x], dim=1)
        x = self.norm1(x + self.dropout(self.attention(x, context, mask)))
        queries, text = x[:, :num_queries], x[:, num_queries:]
        if num_queries:
            if self.cross_attention is not None and self.norm_cross is not None and media is not None:
                queries = self.norm_cross(queries + self.dropout(self.cross_attention(queries, media, media_mask)))
            queries = self.query_norm(queries + self.dropout(self.query_mlp(queries)))
        if text.shape[1] and self.text_mlp is not None and self.text_norm is not None:
            text = self.text_norm(text + self.dropout(self.text_mlp(text)))
        return torch.cat([queries, text], dim=1)


class QFormer(nn.Module):
    """Learned queries, text embeddings, and the blocks."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(0.02 * torch.randn(config.num_queries, config.width))
        self.token_embedding = nn.Embedding(config.vocab_size, config.width) if config.vocab_size else None
        self.pos_embed = nn.Embedding(config.context_length, config.width) if config.vocab_size else None
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        frequency = config.cross_attention_frequency
        self.blocks = nn.ModuleList(QFormerBlock(config, index % frequency == 0) for index in range(config.depth))
        init_transformer(self)

    def forward(
        self,
        media: Float[Tensor, "batch tokens media_width"] | None = None,
        media_mask: Bool[Tensor, "batch tokens"] | None = None,
        ids: Int[Tensor, "batch length"] | None = None,
        text_mask: Bool[Tensor, "batch length"] | None = None,
        mode: QFormerMode = "itm",
    ) -> tuple[Float[Tensor, "batch queries width"], Float[Tensor, "batch length width"]]:
        """Return the hidden states of queries and of text; the input that is not given has an empty output.

        media: image tokens, media_mask: False for padding. ids: text, text_mask: False for padding. mode: see
        `qformer_mask`; for "itg" the first token is the decoder's start token. Media alone and text alone are the two
        uni-modal passes. Raises UserError for text without a vocabulary.
        """
        parts = [] if media is None else [self.queries.expand(len(media), -1, -1)]
        num_queries = 0 if media is None else self.config.num_queries
        mask = None
        if ids is not None:
            parts.append(self._embedded(ids))
            text_mask = torch.ones_like(ids, dtype=torch.bool) if text_mask is None else text_mask
            mask = qformer_mask(num_queries, text_mask, mode)
        x = self.dropout(self.norm(torch.cat(parts, dim=1)))
        for block in self.blocks:
            x = block(x, num_queries, mask, media, media_mask)
        return x[:, :num_queries], x[:, num_queries:]

    @torch.no_grad()
    def copy_text_branch(self) -> None:
        """Let the queries begin with the MLPs and norms of the text branch, as BLIP-2's released code does."""
        weights = self.state_dict()
        for name, weight in weights.items():
            if ".text_mlp." in name or ".text_norm." in name:
                weights[name.replace(".text_", ".query_")].copy_(weight)

    def encode_queries(
        self,
        media: Float[Tensor, "batch tokens media_width"],
        media_mask: Bool[Tensor, "batch tokens"] | None = None,
        separate: bool = False,
    ) -> tuple[Float[Tensor, "batch queries width"], list[Float[Tensor, "batch queries width"]]]:
        """Return the hidden states of the queries, and those that enter each block: the prefix of `decode_text`.

        separate: queries do not see each other, as if each was a sequence of its own with a copy of the image
        (block-diagonal self-attention mask).
        """
        count = self.config.num_queries
        mask = None
        if separate:
            mask = torch.eye(count, dtype=torch.bool, device=media.device).expand(len(media), -1, -1)
        x, prefix = self.dropout(self.norm(self.queries.expand(len(media), -1, -1))), []
        for block in self.blocks:
            prefix.append(x)
            x = block(x, count, mask, media, media_mask)
        return x, prefix

    def decode_text(
        self,
        prefix: list[Float[Tensor, "batch prefix width"]],
        ids: Int[Tensor, "batch length"],
        text_mask: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch length width"]:
        """Return the hidden states of texts in causal mode: each token attends to the prefix and to text up to itself.

        prefix: of `encode_queries`, all queries or some. With all of them it equals `forward` with mode "itg", as
        queries do not attend to texts there; keys and values are projected from the prefix (its cache in BLIP-2).
        """
        causal = qformer_mask(0, text_mask, "itg")
        mask = torch.cat([causal.new_ones(*ids.shape, prefix[0].shape[1]), causal], dim=2)
        x = self.dropout(self.norm(self._embedded(ids)))
        for block, states in zip(self.blocks, prefix, strict=True):
            x = block(x, 0, mask, None, None, states)
        return x

    def _embedded(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Token and position embeddings, before the norm."""
        if self.token_embedding is None or self.pos_embed is None:
            raise UserError("This Q-Former was built without a vocabulary; give it a vocab_size to read text.")
        return self.token_embedding(ids) + self.pos_embed(torch.arange(ids.shape[1], device=ids.device))
