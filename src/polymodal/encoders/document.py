"""Document text encoder: tokens with 2-D layout, the text side of LayoutLMv3 (Huang et al. 2022, section 2.1).

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
    """Configuration of the document encoder."""

    context_length: PositiveInt = 512
    """Maximum page length in tokens, including start and end token."""
    width: PositiveInt = 64
    """Embedding width of tokens; even."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    spatial_bias: bool = True
    """Add a relative attention bias by 1-D text distance and 2-D page distance."""

    def build(self, vocab_size: int) -> Encoder:
        """Build the encoder. vocab_size: entries of the tokenizer."""
        return DocumentEncoder(self, vocab_size)


class DocumentEncoder(Encoder):
    """Layout-aware text transformer; returns packed tokens, their packing, and the mean-pooled vector."""

    def __init__(self, config: DocumentEncoderConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.layout = LayoutEmbedding(config.width)
        self.bias = SpatialBias(config.num_heads) if config.spatial_bias else None
        self.text = LayoutTextTransformer(
            vocab_size, config.context_length, config.width, config.depth, config.num_heads
        )

    def forward(self, page: PageTokens) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Encode pages. Returns the packed tokens of all pages, their packing, and the mean of each page."""
        packing = Packing.of(page.tokens.mask)
        if self.bias is not None:
            packing = dataclasses.replace(packing, bias=self.bias(page.boxes))
        return self.text(page.tokens.ids, self.layout(packing.pack(page.boxes)), packing)
