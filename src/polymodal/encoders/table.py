"""Table rows to tokens: one a column, and a transformer (FT-Transformer, Gorishniy et al. 2021, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Transformer
from polymodal.modalities.table import TableRows


@dataclass(frozen=True)
class TableEncoderConfig:
    """The table tower."""

    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""


class FeatureTokenizer(nn.Module):
    """One token a column, numbers first: a number times its column's direction, or the embedding of a category.

    A missing value is a learned token of its column: what its cell would have held has no influence.
    """

    starts: Tensor

    def __init__(self, width: int, numeric: int, categories: Sequence[int]):
        """numeric: number columns. categories: how many values each category column may have."""
        super().__init__()
        std = width**-0.5
        columns = numeric + len(categories)
        self.slope = nn.Parameter(std * torch.randn(numeric, width))
        self.value = nn.Embedding(sum(categories), width)
        nn.init.normal_(self.value.weight, std=std)
        self.column = nn.Parameter(std * torch.randn(columns, width))
        self.missing = nn.Parameter(std * torch.randn(columns, width))
        starts = torch.tensor([0, *categories]).cumsum(0)[: len(categories)]
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, rows: TableRows) -> Float[Tensor, "batch columns width"]:
        """rows: standardized."""
        numbers = rows.numbers.nan_to_num(0.0)[..., None] * self.slope
        values = self.value(rows.categories.clamp(min=0) + self.starts)
        return torch.where(rows.missing[..., None], self.missing, torch.cat([numbers, values], dim=1)) + self.column


class TableEncoder(Encoder):
    """One token a column, numbers first, and the pooled vector: that of a learned class token."""

    def __init__(self, config: TableEncoderConfig, numeric: int, categories: Sequence[int]):
        """numeric: number columns. categories: how many values each category column may have."""
        super().__init__()
        self.config = config
        self.feature_tokenizer = FeatureTokenizer(config.width, numeric, categories)
        self.class_token = nn.Parameter(config.width**-0.5 * torch.randn(config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(self, rows: TableRows) -> tuple[Float[Tensor, "batch columns width"], Float[Tensor, "batch width"]]:
        """rows: standardized."""
        x = torch.cat([self.class_token.expand(len(rows), 1, -1), self.feature_tokenizer(rows)], dim=1)
        x = self.norm_post(self.transformer(x))
        return x[:, 1:], x[:, 0]
