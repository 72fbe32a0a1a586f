"""The head of BERT's masked language model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedLMHead(nn.Module):
    """Dense layer, GELU, layer norm, and a decoder tied to the token embedding (Devlin et al. 2019, released code).

    The decoder's weight is an argument, not a parameter, so that it is in the state dict once. Call the head on masked
    positions alone: `head(hidden_states[mask], embedding.weight)`; `objectives.masked_modeling` has the loss.
    """

    def __init__(self, width: int, vocab_size: int, norm_eps: float = 1e-5):
        """norm_eps: 1e-12 in BERT's weights."""
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, hidden_states: Float[Tensor, "masked width"], embedding: Float[Tensor, "entries width"]
    ) -> Float[Tensor, "masked vocab_size"]:
        """embedding: of the tokens; entries from `vocab_size` on, such as the mask token's, are never predicted."""
        x = self.norm(F.gelu(self.dense(hidden_states)))
        return F.linear(x, embedding[: len(self.bias)], self.bias)
