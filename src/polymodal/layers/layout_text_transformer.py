"""Text transformer with additional position embeddings: 2-D layout of a page, XPath of a tree."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.transformer import Packing, Transformer, mean_pool


class LayoutTextTransformer(nn.Module):
    """Transformer over the sum of token, 1-D position and layout embeddings, with mean pooling."""

    def __init__(self, vocab_size: int, context_length: int, width: int, depth: int, num_heads: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(context_length, width))
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, num_heads)
        self.norm_post = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(
        self, ids: Int[Tensor, "batch length"], places: Float[Tensor, "total width"], packing: Packing
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Encode texts.

        places: layout embedding of each real token. Returns the packed tokens, their packing, and their mean per text.
        """
        # Token + 1-D position + layout embeddings, all summed.
        x = self.embedding(packing.pack(ids)) + F.embedding(packing.indices % ids.shape[1], self.positions)
        x = self.norm_post(self.transformer(self.norm_pre(x + places), packing))
        return x, packing, mean_pool(x, packing)
