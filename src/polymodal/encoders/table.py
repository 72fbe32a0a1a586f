"""Table encoders: one token per column and a transformer (FT-Transformer, Gorishniy et al. 2021, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Packing, Transformer
from polymodal.modalities.table import TableRows


@dataclass(frozen=True)
class TableEncoderConfig:
    """Configuration of the table encoder."""

    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""


class FeatureTokenizer(nn.Module):
    """Feature tokenizer: one token per column, numeric first: value * weight, or a category embedding.

    A missing value is a learned token per column: the content of its cell has no influence.
    """

    starts: Tensor

    def __init__(self, width: int, numeric: int, categories: Sequence[int]):
        """Build the embeddings. numeric: number of numeric columns. categories: cardinality of each categorical
        column."""
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
        """Embed table rows. rows: standardized."""
        # Numeric: x_j * w_j + b_j; categorical: embedding + b_j (FT-Transformer, section 3.3).
        numbers = rows.numbers.nan_to_num(0.0)[..., None] * self.slope
        values = self.value(rows.categories.clamp(min=0) + self.starts)
        return torch.where(rows.missing[..., None], self.missing, torch.cat([numbers, values], dim=1)) + self.column


class TableEncoder(Encoder):
    """FT-Transformer: one token per column, numeric first, pooled by the CLS token."""

    def __init__(self, config: TableEncoderConfig, numeric: int, categories: Sequence[int]):
        """Build the encoder. numeric: number of numeric columns. categories: cardinality of each categorical column."""
        super().__init__()
        self.config = config
        self.feature_tokenizer = FeatureTokenizer(config.width, numeric, categories)
        self.class_token = nn.Parameter(config.width**-0.5 * torch.randn(config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post: nn.Module = nn.LayerNorm(config.width)

    def embed_cells(self, rows: TableRows) -> Float[Tensor, "batch columns_and_one width"]:
        """Return the CLS token and one token per column, before the transformer."""
        return torch.cat([self.class_token.expand(len(rows), 1, -1), self.feature_tokenizer(rows)], dim=1)

    def forward(self, rows: TableRows) -> tuple[Float[Tensor, "batch columns width"], Float[Tensor, "batch width"]]:
        """Encode table rows. rows: standardized."""
        x = self.norm_post(self.transformer(self.embed_cells(rows)))
        return x[:, 1:], x[:, 0]


class IncompleteTableEncoder(TableEncoder):
    """Table encoder in which no token attends to a missing cell but the cell's own token (TIP, Du et al. 2024, section
    3.1).

    Layer norm comes before the blocks, and none after them (released code). The released encoder shares the missing
    token and the weight of numbers between columns, and has a bias for numbers; here each column has its own, with the
    bias in the column embedding, which contains that encoder.
    """

    modes: Tensor | None

    def __init__(
        self,
        config: TableEncoderConfig,
        numeric: int,
        categories: Sequence[int],
        modes: Sequence[int] | None = None,
    ):
        """modes: most frequent value of each categorical column, for `fill_missing`; None fills nothing."""
        super().__init__(config, numeric, categories)
        self.norm_pre = nn.LayerNorm(config.width)
        self.norm_post = nn.Identity()
        filling = None if modes is None else torch.tensor(modes, dtype=torch.long)
        self.register_buffer("modes", filling, persistent=False)

    def fill_missing(self, rows: TableRows) -> TableRows:
        """Fill missing cells with the column's mean or mode, or leave them to the missing token."""
        return rows if self.modes is None else rows.filled(self.modes)

    def forward(self, rows: TableRows) -> tuple[Float[Tensor, "batch columns width"], Float[Tensor, "batch width"]]:
        """Encode incomplete table rows. rows: standardized."""
        x = self.norm_pre(self.embed_cells(rows))
        # Key j is masked for every query i != j where cell j is missing. CLS is never masked, and the diagonal is open:
        # a missing cell's token can attend to the row and be filled in.
        missing = F.pad(rows.missing, (1, 0))[:, None, :]
        masked = missing & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        bias = torch.zeros(masked.shape, device=x.device).masked_fill(masked, -math.inf)[:, None]
        packing = replace(Packing.of(x.new_ones(x.shape[:2], dtype=torch.bool)), bias=bias)
        x = self.transformer(x.flatten(0, 1), packing).view_as(x)
        return x[:, 1:], x[:, 0]
