"""Which word was hidden? The head of BERT's masked language model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class WordHead(nn.Module):
    """A perceptron, then the inner product with every word's own vector (Devlin et al. 2019, released code)."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self, tokens: Float[Tensor, "hidden width"], words: Float[Tensor, "vectors width"]
    ) -> Float[Tensor, "hidden vocabulary"]:
        """words: the vectors that texts are read with, of which those behind the vocabulary are no words."""
        return F.linear(self.transform(tokens), words[: len(self.bias)], self.bias)
