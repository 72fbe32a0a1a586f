"""Texts to tokens: the transformer of CLIP over packed sequences, so that padding is never computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import ContextLength, DecayRate, NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Packing, Transformer, cls_index, eos_index, mean_pool, select_rows
from polymodal.modalities.text import TextTokenizer, Tokenizer, Tokens

PoolType = Literal["avg", "eos", "cls"]
TOKEN_INDEX = {"eos": eos_index, "cls": cls_index}


@dataclass(frozen=True)
class TextEncoderConfig:
    """The text tower."""

    vocab_size: PositiveInt = 8000
    """Entries of the byte-level BPE that is learned on the corpus."""
    context_length: ContextLength = 64
    """Longest sequence in tokens, with start and end mark; longer captions are cut."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 0
    """Transformer blocks; 0 is the mean of token vectors, which a few thousand captions cannot overfit."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    causal: bool = False
    """Whether a token sees only the tokens before it, as in the original CLIP."""
    pool_type: PoolType = "avg"
    """Caption vector: the mean over tokens, the end mark, or the start mark."""
    dropout: DecayRate = 0.0
    """Probability of dropping a channel after attention and MLP."""

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """One for these texts: a byte-level BPE that is learned on them."""
        return TextTokenizer.train(texts, self.vocab_size, self.context_length)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """The one that `save` wrote into a run."""
        return TextTokenizer.load(directory, self.context_length)

    def build(self, vocab_size: int) -> Encoder:
        """vocab_size: entries of the tokenizer."""
        return TextEncoder(self, vocab_size)


class TextEncoder(Encoder):
    """A text transformer; its output has the tokens packed, with their packing, and the pooled vector."""

    def __init__(self, config: TextEncoderConfig, vocab_size: int):
        """vocab_size: entries of the tokenizer, which may be fewer than the configuration allows."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads, config.causal, config.dropout)
        self.norm_post = nn.LayerNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, text: Tokens) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Returns the packed tokens of all captions, where they stand, and the pooled vectors."""
        packing = Packing.of(text.mask)
        x = self.norm_post(self.transformer(self._embedded(text, packing), packing))
        return x, packing, pool(x, packing, self.config.pool_type)

    def pooled(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """The pooled vectors alone; where that is a mark, the last block computes nothing else."""
        if self.config.pool_type not in TOKEN_INDEX:
            return self(text)[-1]
        packing = Packing.of(text.mask)
        marks = TOKEN_INDEX[self.config.pool_type](packing)
        return self.norm_post(self.transformer(self._embedded(text, packing), packing, marks))

    def _embedded(self, text: Tokens, packing: Packing) -> Float[Tensor, "total width"]:
        place = packing.indices % text.ids.shape[1]
        # Both are look-ups: indexing with repeated places would add up its gradient in an order that varies.
        return self.embedding(packing.pack(text.ids)) + F.embedding(place, self.positions)


def pool(packed: Float[Tensor, "total width"], packing: Packing, pool_type: PoolType) -> Float[Tensor, "batch width"]:
    """One vector a sequence: the mean over its real tokens, or one of its marks."""
    return (
        select_rows(packed, TOKEN_INDEX[pool_type](packing)) if pool_type in TOKEN_INDEX else mean_pool(packed, packing)
    )
