"""Web pages to tokens: texts with the XPaths of their elements (MarkupLM, Li et al. 2022, section 3.2).

Needed by: markuplm, weblm.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.layout_text_transformer import LayoutTextTransformer
from polymodal.layers.positions import XPathEmbedding
from polymodal.layers.transformer import Packing
from polymodal.modalities.webpage import PLACE_COUNT, TAG_COUNT, ElementTokens


@dataclass(frozen=True)
class WebpageEncoderConfig:
    """The tower of web pages."""

    context_length: PositiveInt = 512
    """Longest page in tokens, with start and end mark."""
    max_xpath_depth: PositiveInt = 16
    """Steps of an XPath that are seen; MarkupLM has 50."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""

    def build(self, vocab_size: int) -> Encoder:
        """vocab_size: entries of the tokenizer."""
        return WebpageEncoder(self, vocab_size)


class WebpageEncoder(Encoder):
    """A transformer over texts and paths; its tokens packed, with their packing, and the pooled vector."""

    def __init__(self, config: WebpageEncoderConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.xpath = XPathEmbedding(config.width, TAG_COUNT, PLACE_COUNT, config.max_xpath_depth)
        self.text = LayoutTextTransformer(
            vocab_size, config.context_length, config.width, config.depth, config.num_heads
        )

    def forward(
        self, page: ElementTokens
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Returns the packed tokens of all pages, where they stand, and the mean of each."""
        packing = Packing.of(page.tokens.mask)
        return self.text(page.tokens.ids, self.xpath(packing.pack(page.path)), packing)
