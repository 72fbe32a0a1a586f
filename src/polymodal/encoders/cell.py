"""Cells to tokens: a token for every expressed gene, of its name and its level (scGPT, Cui et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Packing, Transformer, chosen, first_rows
from polymodal.ranges import Count, Whole


@dataclass(frozen=True)
class CellEncoderConfig:
    """The cell tower."""

    genes: Count = 765
    """Genes that a profile lists."""
    bins: Count = 50
    """Levels of expression, as `modalities.cell.binned` makes them; 0 is a silent gene."""
    width: Count = 64
    """Channels of every token."""
    depth: Whole = 2
    """Transformer blocks."""
    heads: Count = 4
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
        self.name = nn.Embedding(config.genes, config.width)
        self.level = nn.Embedding(config.bins + 1, config.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(config.width))
        self.norm_before = nn.LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.norm_after = nn.LayerNorm(config.width)
        for part in (self.name, self.level):
            nn.init.normal_(part.weight, std=0.02)

    def forward(
        self, levels: Int[Tensor, "batch genes"]
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """levels: 0 to `bins`, in the order of the corpus's genes."""
        expressed = levels > 0
        mask = torch.cat([expressed.new_ones(len(levels), 1), expressed], dim=1)
        packing = Packing.of(mask)
        place = packing.places % mask.shape[1]
        genes = place > 0
        tokens = self.name(place[genes] - 1) + self.level(levels[expressed])
        x = self.class_token.repeat(len(place), 1).to(tokens.dtype)
        x = x.index_copy(0, genes.nonzero().squeeze(1), tokens)
        x = self.norm_after(self.transformer(self.norm_before(x), packing))
        return x, packing, chosen(x, first_rows(packing))
