"""Which word was hidden? The head of BERT's masked language model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MlmHead(nn.Module):
    """An MLP, then the inner product with every word's own vector (Devlin et al. 2019, released code)."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, tokens: Float[Tensor, "masked width"], words: Float[Tensor, "vectors width"]
    ) -> Float[Tensor, "masked vocabulary"]:
        """words: the vectors that texts are read with, of which those behind the vocabulary are no words."""
        return F.linear(self.transform(tokens), words[: len(self.bias)], self.bias)
