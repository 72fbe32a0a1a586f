"""Pages of words in places to tokens: the text side of LayoutLMv3 (Huang et al. 2022, section 2.1).

Needed by: skim_attention, formnetv2, docllm.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.layout_text_transformer import LayoutTextTransformer
from polymodal.layers.positions import LayoutEmbedding, SpatialBias
from polymodal.layers.transformer import Packing
from polymodal.modalities.document import PageTokens


@dataclass(frozen=True)
class DocumentEncoderConfig:
    """The tower of pages."""

    context_length: PositiveInt = 512
    """Longest page in tokens, with start and end mark."""
    width: PositiveInt = 64
    """Channels of every token; even."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    spatial_bias: bool = True
    """Whether attention sees the distances of tokens in the text, across and down the page."""

    def build(self, vocab_size: int) -> Encoder:
        """vocab_size: entries of the tokenizer."""
        return DocumentEncoder(self, vocab_size)


class DocumentEncoder(Encoder):
    """A transformer over words and their boxes; its tokens packed, with their packing, and the pooled vector."""

    def __init__(self, config: DocumentEncoderConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.layout = LayoutEmbedding(config.width)
        self.bias = SpatialBias(config.num_heads) if config.spatial_bias else None
        self.text = LayoutTextTransformer(
            vocab_size, config.context_length, config.width, config.depth, config.num_heads
        )

    def forward(self, page: PageTokens) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Returns the packed tokens of all pages, where they stand, and the mean of each."""
        packing = Packing.of(page.tokens.mask)
        if self.bias is not None:
            packing = dataclasses.replace(packing, bias=self.bias(page.boxes))
        return self.text(page.tokens.ids, self.layout(packing.pack(page.boxes)), packing)
