"""Longformer: a post-norm text transformer with local and global attention over one or two segments.

Needed by: mqdd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import ContextLength, DecayRate, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.local_attention import longformer
from polymodal.layers.projection_head import Pooler
from polymodal.layers.transformer import Block, Packing, cls_index, select_rows
from polymodal.modalities.paired_tokens import PairedTokens
from polymodal.modalities.text import Tokens

NORM_EPS = 1e-12


@dataclass(frozen=True)
class LongformerEncoderConfig:
    """Architecture of the encoder of long texts and pairs of texts."""

    vocab_size: PositiveInt = 4000
    """Vocabulary size of the byte-level BPE tokenizer, which is trained on the corpus and keeps case."""
    context_length: ContextLength = 96
    """Maximum sequence length in tokens, of both segments and the special tokens together."""
    width: PositiveInt = 128
    """Embedding width of tokens."""
    depth: PositiveInt = 2
    """Number of transformer blocks; in a single one, CLS cannot read which tokens of both segments match."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    attention_window: PositiveInt = 64
    """Tokens of the window of local attention, on both sides together; an even number."""
    dropout: DecayRate = 0.0
    """Dropout probability of embeddings, of attention weights, and after attention and MLP."""
    mimetic_init: bool = True
    """Mimetic initialization of attention (Trockman and Kolter 2023), without which few examples do not teach that
    equal tokens match; not in the paper."""

    def build(self, vocab_size: int) -> LongformerEncoder:
        """Build the encoder. vocab_size: entries of the tokenizer, without the mask token."""
        return LongformerEncoder(self, vocab_size)


class LongformerEncoder(Encoder):
    """Return packed tokens, their packing, and the pooled vector tanh(W h_CLS)."""

    def __init__(self, config: LongformerEncoderConfig, vocab_size: int):
        """vocab_size: of the tokenizer; the mask token is the entry after these."""
        super().__init__()
        self.config = config
        self.mask_id = vocab_size
        self.embedding = nn.Embedding(vocab_size + 1, config.width)
        self.positions = nn.Embedding(config.context_length, config.width)
        self.token_type = nn.Embedding(2, config.width)
        self.norm_pre = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = longformer(
            config.width,
            config.depth,
            config.num_heads,
            config.attention_window,
            config.dropout,
            NORM_EPS,
            config.mimetic_init,
        )
        self.pooler = Pooler(config.width, config.width)
        # Where equal tokens are to attend to each other, tokens outweigh positions and token types.
        position_std, type_std = (0.005, 0.01) if config.mimetic_init else (0.02, 0.02)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=position_std)
        nn.init.normal_(self.token_type.weight, std=type_std)

    def forward(self, text: Tokens) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Encode texts, or pairs of texts in one sequence, of which the second has token type 1."""
        packing = Packing.of(text.mask)
        x = self.transformer(self._embedded(text, packing), packing)
        return x, packing, self.pooler(select_rows(x, cls_index(packing)))

    def pooled(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """Return the pooled vectors; the last block computes the first tokens (CLS) only."""
        packing = Packing.of(text.mask)
        return self.pooler(self.transformer(self._embedded(text, packing), packing, cls_index(packing)))

    def set_dropout(self, probability: float) -> None:
        """Change the dropout probability of all layers, as fine-tuning does."""
        self.dropout.p = probability
        for block in self.transformer.blocks:
            assert isinstance(block, Block)
            block.dropout.p = block.attention.dropout = probability

    def _embedded(self, text: Tokens, packing: Packing) -> Float[Tensor, "total width"]:
        segments = text.segments if isinstance(text, PairedTokens) else torch.zeros_like(text.ids)
        position = packing.indices % text.ids.shape[1]
        x = self.embedding(packing.pack(text.ids)) + F.embedding(position, self.positions.weight)
        return self.dropout(self.norm_pre(x + self.token_type(packing.pack(segments))))
