"""Text encoder: the transformer of CLIP over packed sequences, so that padding is never computed."""

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
    """Configuration of the text encoder."""

    vocab_size: PositiveInt = 8000
    """Vocabulary size of the byte-level BPE tokenizer, which is trained on the corpus."""
    context_length: ContextLength = 64
    """Maximum sequence length in tokens, including start and end token; longer texts are truncated."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 0
    """Number of transformer blocks; 0: the mean of token embeddings, which a few thousand captions cannot overfit."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    causal: bool = False
    """Causal attention: a token attends to earlier tokens only, as in the original CLIP."""
    pool_type: PoolType = "avg"
    """Pooling: mean over tokens, end token (EOS), or start token (CLS)."""
    dropout: DecayRate = 0.0
    """Dropout probability after attention and MLP."""

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """Train a byte-level BPE tokenizer on these texts."""
        return TextTokenizer.train(texts, self.vocab_size, self.context_length)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Load the tokenizer that was saved in a run."""
        return TextTokenizer.load(directory, self.context_length)

    def build(self, vocab_size: int) -> Encoder:
        """Build the encoder. vocab_size: entries of the tokenizer."""
        return TextEncoder(self, vocab_size)


class TextEncoder(Encoder):
    """Text transformer; returns packed tokens, their packing, and the pooled vector."""

    def __init__(self, config: TextEncoderConfig, vocab_size: int):
        """Build the encoder. vocab_size: entries of the tokenizer, which may be fewer than the configuration allows."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads, config.causal, config.dropout)
        self.norm_post = nn.LayerNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, text: Tokens) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Encode texts. Returns the packed tokens of all texts, their packing, and the pooled vectors."""
        x, packing = self.hidden_states(text)
        x = self.norm_post(x)
        return x, packing, pool(x, packing, self.config.pool_type)

    def hidden_states(self, text: Tokens) -> tuple[Float[Tensor, "total width"], Packing]:
        """Return the packed tokens before the last norm, and their packing."""
        packing = Packing.of(text.mask)
        return self.transformer(self._embedded(text, packing), packing), packing

    def pooled_states(self, states: Float[Tensor, "total width"], packing: Packing) -> Float[Tensor, "batch width"]:
        """Return the pooled vectors of `hidden_states`, with EOS or CLS pooling."""
        return self.norm_post(select_rows(states, TOKEN_INDEX[self.config.pool_type](packing)))

    def pooled(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """Return the pooled vectors; with EOS or CLS pooling, the last block computes these tokens only."""
        if self.config.pool_type not in TOKEN_INDEX:
            return self(text)[-1]
        packing = Packing.of(text.mask)
        rows = TOKEN_INDEX[self.config.pool_type](packing)
        return self.norm_post(self.transformer(self._embedded(text, packing), packing, rows))

    def _embedded(self, text: Tokens, packing: Packing) -> Float[Tensor, "total width"]:
        position = packing.indices % text.ids.shape[1]
        # F.embedding rather than indexing: the gradient of indexing with repeated positions is not deterministic.
        return self.embedding(packing.pack(text.ids)) + F.embedding(position, self.positions)


def pool(packed: Float[Tensor, "total width"], packing: Packing, pool_type: PoolType) -> Float[Tensor, "batch width"]:
    """Pool each sequence: the mean over its real tokens, or one special token."""
    return (
        select_rows(packed, TOKEN_INDEX[pool_type](packing)) if pool_type in TOKEN_INDEX else mean_pool(packed, packing)
    )
