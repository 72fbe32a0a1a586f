"""Cell encoder: gene expression profiles as sets of (gene, expression bin) tokens (scGPT, Cui et al. 2024).

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
    """Configuration of the cell encoder."""

    num_genes: PositiveInt = 765
    """Number of genes of a profile."""
    num_expression_bins: PositiveInt = 50
    """Number of expression bins of `modalities.gene_expression`; bin 0 is a silent gene."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""

    def build(self) -> Encoder:
        return CellEncoder(self)


class CellEncoder(Encoder):
    """Transformer over a set: CLS token and expressed genes, packed; pooled by the CLS token.

    Silent genes have no token and cost nothing; the order of genes does not matter, as gene embeddings are learned.
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
        for embedding in (self.name, self.level):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self, levels: Int[Tensor, "batch genes"]
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Encode cells. levels: expression bins 0 to `num_expression_bins`, in the order of the corpus's genes."""
        expressed = levels > 0
        mask = torch.cat([expressed.new_ones(len(levels), 1), expressed], dim=1)
        packing = Packing.of(mask)
        column = packing.indices % mask.shape[1]
        genes = column > 0
        # Token = gene embedding + expression bin embedding.
        tokens = self.name(column[genes] - 1) + self.level(levels[expressed])
        x = self.class_token.repeat(len(column), 1).to(tokens.dtype)
        x = x.index_copy(0, genes.nonzero().squeeze(1), tokens)
        x = self.norm_post(self.transformer(self.norm_pre(x), packing))
        return x, packing, select_rows(x, cls_index(packing))
