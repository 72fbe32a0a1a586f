"""Queries that read a sequence and become boxes (DETR, Carion et al. 2020, section 3.2 and appendix A.3)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class DETRDecoderLayer(nn.Module):
    """Attention among queries, attention to a memory, MLP; each is added and normed (post-norm).

    Places are added to what is compared, not to what is read.
    """

    def __init__(self, width: int, num_heads: int, mlp_dim: int, dropout: float = 0.1):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, mlp_dim), nn.Linear(mlp_dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        query_pos: Float[Tensor, "batch queries width"],
        memory: Float[Tensor, "batch length width"],
        memory_pos: Float[Tensor, "length width"],
        padding: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """padding: True where the memory holds nothing."""
        placed = x + query_pos
        read, _ = self.self_attention(placed, placed, x, need_weights=False)
        x = self.norms[0](x + self.dropout(read))
        read, _ = self.cross_attention(
            x + query_pos, memory + memory_pos, memory, key_padding_mask=padding, need_weights=False
        )
        x = self.norms[1](x + self.dropout(read))
        return self.norms[2](x + self.dropout(self.fc2(self.dropout(F.relu(self.fc1(x))))))


class DETRDecoder(nn.Module):
    """A stack of such blocks, which queries enter without content."""

    def __init__(self, width: int, depth: int, num_heads: int, mlp_dim: int, dropout: float = 0.1):
        super().__init__()
        self.blocks = nn.ModuleList(DETRDecoderLayer(width, num_heads, mlp_dim, dropout) for _ in range(depth))
        self.norm_post = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        query_pos: Float[Tensor, "batch queries width"],
        memory: Float[Tensor, "batch length width"],
        memory_pos: Float[Tensor, "length width"],
        padding: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "depth batch queries width"]:
        """The queries after every block, each of which is asked for boxes while training (deep supervision)."""
        x = torch.zeros_like(query_pos)
        every = []
        for block in self.blocks:
            x = block(x, query_pos, memory, memory_pos, padding)
            every.append(self.norm_post(x))
        return torch.stack(every)


class BoxHead(nn.Module):
    """Whether a query stands for an object, and the object's box."""

    def __init__(self, width: int):
        super().__init__()
        self.kind = nn.Linear(width, 2)
        self.box = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        kaiming_init_(self.box)

    def forward(
        self, queries: Float[Tensor, "*shape width"]
    ) -> tuple[Float[Tensor, "*shape 2"], Float[Tensor, "*shape 4"]]:
        """Logits of object and none, and center, width and height in shares of the image."""
        return self.kind(queries), self.box(queries).sigmoid()


def kaiming_init_(mlp: nn.Sequential) -> None:
    """Weights of an MLP with ReLU by He et al. (2015), biases 0.

    With torch's own, what leaves a few layers hardly depends on what enters, and boxes stay the same for long.
    """
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
