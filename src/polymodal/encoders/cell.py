"""Cells to tokens: a token for every expressed gene, of its name and its level (scGPT, Cui et al. 2024).

Needed by: scmmgpt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Packing, Transformer, cls_index, select_rows


@dataclass(frozen=True)
class CellEncoderConfig:
    """The cell tower."""

    num_genes: PositiveInt = 765
    """Genes that a profile lists."""
    num_expression_bins: PositiveInt = 50
    """Levels of expression, as `modalities.cell.binned` makes them; 0 is a silent gene."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""

    def build(self) -> Encoder:
        return CellEncoder(self)


class CellEncoder(Encoder):
    """A transformer over a set: the class token and the expressed genes, packed, and the pooled class token.

    Silent genes have no token, so they cost nothing; the order of genes does not matter, since names are learned.
    """

    def __init__(self, config: CellEncoderConfig):
        super().__init__()
        self.config = config
        self.name = nn.Embedding(config.num_genes, config.width)
        self.level = nn.Embedding(config.num_expression_bins + 1, config.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(config.width))
        self.norm_pre = nn.LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm_post = nn.LayerNorm(config.width)
        for part in (self.name, self.level):
            nn.init.normal_(part.weight, std=0.02)

    def forward(
        self, levels: Int[Tensor, "batch genes"]
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """levels: 0 to `num_expression_bins`, in the order of the corpus's genes."""
        expressed = levels > 0
        mask = torch.cat([expressed.new_ones(len(levels), 1), expressed], dim=1)
        packing = Packing.of(mask)
        place = packing.indices % mask.shape[1]
        genes = place > 0
        tokens = self.name(place[genes] - 1) + self.level(levels[expressed])
        x = self.class_token.repeat(len(place), 1).to(tokens.dtype)
        x = x.index_copy(0, genes.nonzero().squeeze(1), tokens)
        x = self.norm_post(self.transformer(self.norm_pre(x), packing))
        return x, packing, select_rows(x, cls_index(packing))
