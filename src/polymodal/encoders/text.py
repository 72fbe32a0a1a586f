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

from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Packing, Transformer, chosen, first_rows, last_rows, mean_of_tokens
from polymodal.modalities.text import TextTokenizer, Tokenizer, Tokens
from polymodal.ranges import BelowOne, Context, Count, Whole

Pooling = Literal["mean", "end", "start"]
MARKS = {"end": last_rows, "start": first_rows}


@dataclass(frozen=True)
class TextEncoderConfig:
    """The text tower."""

    vocabulary: Count = 8000
    """Entries of the byte-level BPE that is learned on the corpus."""
    context: Context = 64
    """Longest sequence in tokens, with start and end mark; longer captions are cut."""
    width: Count = 64
    """Channels of every token."""
    depth: Whole = 0
    """Transformer blocks; 0 is the mean of token vectors, which a few thousand captions cannot overfit."""
    heads: Count = 4
    """Attention heads of a block."""
    causal: bool = False
    """Whether a token sees only the tokens before it, as in the original CLIP."""
    pooling: Pooling = "mean"
    """Caption vector: the mean over tokens, the end mark, or the start mark."""
    dropout: BelowOne = 0.0
    """Probability of dropping a channel after attention and perceptron."""

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """One for these texts: a byte-level BPE that is learned on them."""
        return TextTokenizer.train(texts, self.vocabulary, self.context)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """The one that `save` wrote into a run."""
        return TextTokenizer.load(directory, self.context)

    def build(self, vocabulary: int) -> Encoder:
        """vocabulary: entries of the tokenizer."""
        return TextEncoder(self, vocabulary)


class TextEncoder(Encoder):
    """A text transformer; its output has the tokens packed, with their packing, and the pooled vector."""

    def __init__(self, config: TextEncoderConfig, vocabulary: int):
        """vocabulary: entries of the tokenizer, which may be fewer than the configuration allows."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.transformer = Transformer(config.width, config.depth, config.heads, config.causal, config.dropout)
        self.norm_after = nn.LayerNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, text: Tokens) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Returns the packed tokens of all captions, where they stand, and the pooled vectors."""
        packing = Packing.of(text.mask)
        x = self.norm_after(self.transformer(self._embedded(text, packing), packing))
        return x, packing, pool(x, packing, self.config.pooling)

    def pooled(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """The pooled vectors alone; where that is a mark, the last block computes nothing else."""
        if self.config.pooling not in MARKS:
            return self(text)[-1]
        packing = Packing.of(text.mask)
        marks = MARKS[self.config.pooling](packing)
        return self.norm_after(self.transformer(self._embedded(text, packing), packing, marks))

    def _embedded(self, text: Tokens, packing: Packing) -> Float[Tensor, "total width"]:
        place = packing.places % text.ids.shape[1]
        # Both are look-ups: indexing with repeated places would add up its gradient in an order that varies.
        return self.embedding(packing.pack(text.ids)) + F.embedding(place, self.positions)


def pool(packed: Float[Tensor, "total width"], packing: Packing, pooling: Pooling) -> Float[Tensor, "batch width"]:
    """One vector a sequence: the mean over its real tokens, or one of its marks."""
    return chosen(packed, MARKS[pooling](packing)) if pooling in MARKS else mean_of_tokens(packed, packing)
