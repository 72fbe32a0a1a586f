"""Siamese (two-tower) classification of pairs: one encoder for both sides, and a head on both vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ConcatenationHead(nn.Module):
    """Dropout, linear layer, ReLU, dropout and a linear layer without bias on [u; v], for two classes.

    It is not symmetric in u and v; what is trained with both orders is nearly so.
    """

    def __init__(self, width: int, hidden_dim: int, dropouts: tuple[float, float] = (0.4, 0.3)):
        super().__init__()
        self.dropout = nn.ModuleList(nn.Dropout(probability) for probability in dropouts)
        self.dense = nn.Linear(2 * width, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, 2, bias=False)

    def forward(self, u: Float[Tensor, "batch width"], v: Float[Tensor, "batch width"]) -> Float[Tensor, "batch 2"]:
        x = F.relu(self.dense(self.dropout[0](torch.cat([u, v], dim=1))))
        return self.out_proj(self.dropout[1](x))

    def penalty(self) -> Float[Tensor, ""]:
        """Return the sum of the L2 norms of its parameters, which is added to the loss with a weight."""
        return torch.stack([parameter.norm() for parameter in self.parameters()]).sum()


class CosineHead(nn.Module):
    """p = (1 + cos(u, v)) / 2 as the value of the class "match" and 1 - p as that of the other; symmetric.

    The values are in place of logits, of which the cross-entropy is taken, as in the released code of MQDD.
    """

    def forward(self, u: Float[Tensor, "batch width"], v: Float[Tensor, "batch width"]) -> Float[Tensor, "batch 2"]:
        p = (1 + F.cosine_similarity(u, v)) / 2
        return torch.stack([1 - p, p], dim=1)

    def penalty(self) -> Float[Tensor, ""]:
        """Return 0: there are no parameters."""
        return torch.zeros(())
