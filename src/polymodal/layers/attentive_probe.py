"""Attentive probe: a learned query attends once to frozen tokens, and a linear layer classifies (AIM, AIMv2)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError

NORM_EPS = 1e-6  # AIM, released code


class AttentiveProbe(nn.Module):
    """Batch norm without parameters, attention of one learned query per head, and a linear layer.

    There is no query projection, no output projection and no residual. AIMv2's image head for LiT is the same without
    batch norm and with a bias. Keys and values are linear in the tokens, so that the query is brought into the space of
    the tokens and values are projected after pooling: equal outputs, without a projection of every token.
    """

    def __init__(self, width: int, output_dim: int, num_heads: int, batch_norm: bool = True, bias: bool = False):
        """output_dim: number of classes, or width of the pooled vector. bias: of the linear layer.

        Raises UserError where the width does not divide into the heads.
        """
        super().__init__()
        if width % num_heads:
            raise UserError(f"A width of {width} does not divide into {num_heads} heads.")
        self.num_heads = num_heads
        self.norm = nn.BatchNorm1d(width, affine=False, eps=NORM_EPS) if batch_norm else None
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, output_dim, bias=bias)

    def forward(
        self, tokens: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch outputs"]:
        """mask: False for padding, which neither attention nor batch norm sees."""
        tokens = self._normed(tokens, mask)
        pooled = self._weights(tokens, mask) @ tokens  # (batch, heads, width)
        value = self.value.weight.unflatten(0, (self.num_heads, -1))
        return self.linear(torch.einsum("bhw,hdw->bhd", pooled, value).flatten(1))

    def attention(
        self, tokens: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch heads length"]:
        """Return the attention weights of the query, by head."""
        return self._weights(self._normed(tokens, mask), mask)

    def _normed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.norm is None:
            return tokens
        if bool(mask.all()):
            return self.norm(tokens.flatten(0, 1)).view_as(tokens)
        return torch.zeros_like(tokens).masked_scatter(mask[..., None], self.norm(tokens[mask]))

    def _weights(self, tokens: Tensor, mask: Tensor) -> Tensor:
        key, query = (part.unflatten(0, (self.num_heads, -1)) for part in (self.key.weight, self.query))
        head_dim = query.shape[1]
        logits = tokens @ torch.einsum("hdw,hd->wh", key, query) * head_dim**-0.5
        return F.softmax(logits.masked_fill(~mask[..., None], -torch.inf), dim=1).transpose(1, 2)
