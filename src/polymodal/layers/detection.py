"""Transformer decoder of DETR, from object queries to boxes (Carion et al. 2020, section 3.2 and appendix A.3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.positions import sine_positions


class DETRDecoderLayer(nn.Module):
    """DETR decoder layer: self-attention of queries, cross-attention to the memory, MLP (post-norm).

    Position embeddings are added to queries and keys, not to values.
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
        """Apply the layer. padding: True for padding of the memory."""
        # Position embeddings are added to queries and keys in every layer, not to values.
        query = x + query_pos
        attended, _ = self.self_attention(query, query, x, need_weights=False)
        x = self.norms[0](x + self.dropout(attended))
        attended, _ = self.cross_attention(
            x + query_pos, memory + memory_pos, memory, key_padding_mask=padding, need_weights=False
        )
        x = self.norms[1](x + self.dropout(attended))
        return self.norms[2](x + self.dropout(self.fc2(self.dropout(F.relu(self.fc1(x))))))


class DETRDecoder(nn.Module):
    """A stack of DETR decoder layers; queries start at zero and differ by their position embeddings."""

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
        """Return the normed queries after every layer, for auxiliary losses (deep supervision)."""
        # Object queries: zero content, learned position embeddings.
        x = torch.zeros_like(query_pos)
        outputs = []
        for block in self.blocks:
            x = block(x, query_pos, memory, memory_pos, padding)
            outputs.append(self.norm_post(x))
        return torch.stack(outputs)


class TextGuidedQueries(nn.Module):
    """Learned queries that read the words, plus the maximum of each channel over the words (TQG).

    SimVG (Dai et al. 2024, section 3.2).
    """

    def __init__(self, dim: int, num_queries: int, num_heads: int, dropout: float = 0.1):
        super().__init__()
        self.query_embed = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.decoder = DETRDecoder(dim, 2, num_heads, 2 * dim, dropout)

    def forward(
        self, words: Float[Tensor, "batch length dim"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch queries dim"]:
        """mask: False for padding."""
        max_pooled = words.masked_fill(~mask[..., None], -math.inf).amax(1, keepdim=True)
        positions = sine_positions(words.shape[1], words.shape[2], words)
        query_embed = self.query_embed.expand(len(words), -1, -1)
        return self.decoder(query_embed, words, positions, ~mask)[-1] + max_pooled + query_embed


class BoxHead(nn.Module):
    """Class logits (object, no object) and box of each object query."""

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
        """Return logits of [object, no object] and boxes as center x, center y, width, height, relative to the image (0
        to 1)."""
        return self.kind(queries), self.box(queries).sigmoid()


def kaiming_init_(mlp: nn.Sequential) -> None:
    """Initialize the linear layers of a ReLU MLP by He et al. (2015), biases with 0.

    With torch's default, activations shrink so much in a few layers that predicted boxes hardly depend on the input at
    first.
    """
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
