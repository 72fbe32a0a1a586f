"""Web pages to tokens: texts with the XPaths of their elements (MarkupLM, Li et al. 2022, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from polymodal.encoders.encoder import Encoder
from polymodal.layers.placed_text import PlacedText
from polymodal.layers.positions import XPathEmbedding
from polymodal.layers.transformer import Packing
from polymodal.modalities.webpage import PLACE_COUNT, TAG_COUNT, ElementTokens
from polymodal.ranges import Count, Whole


@dataclass(frozen=True)
class WebpageEncoderConfig:
    """The tower of web pages."""

    context: Count = 512
    """Longest page in tokens, with start and end mark."""
    steps: Count = 16
    """Steps of an XPath that are seen; MarkupLM has 50."""
    width: Count = 64
    """Channels of every token."""
    depth: Whole = 2
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads of a block."""

    def build(self, vocabulary: int) -> Encoder:
        """vocabulary: entries of the tokenizer."""
        return WebpageEncoder(self, vocabulary)


class WebpageEncoder(Encoder):
    """A transformer over texts and paths; its tokens packed, with their packing, and the pooled vector."""

    def __init__(self, config: WebpageEncoderConfig, vocabulary: int):
        super().__init__()
        self.config = config
        self.xpath = XPathEmbedding(config.width, TAG_COUNT, PLACE_COUNT, config.steps)
        self.text = PlacedText(vocabulary, config.context, config.width, config.depth, config.heads)

    def forward(
        self, page: ElementTokens
    ) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Returns the packed tokens of all pages, where they stand, and the mean of each."""
        packing = Packing.of(page.tokens.mask)
        return self.text(page.tokens.ids, self.xpath(packing.pack(page.path)), packing)
