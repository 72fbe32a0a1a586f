"""Web page encoder: texts with the XPaths of their elements (MarkupLM, Li et al. 2022, section 3.2).

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
    """Configuration of the web page encoder."""

    context_length: PositiveInt = 512
    """Maximum page length in tokens, including start and end token."""
    max_xpath_depth: PositiveInt = 16
    """Maximum XPath depth in steps; MarkupLM has 50."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""

    def build(self, vocab_size: int) -> Encoder:
        """Build the encoder. vocab_size: entries of the tokenizer."""
        return WebpageEncoder(self, vocab_size)


class WebpageEncoder(Encoder):
    """Transformer over text tokens with XPath embeddings; returns packed tokens, their packing, and the mean-pooled
    vector."""

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
        """Encode pages. Returns the packed tokens of all pages, their packing, and the mean of each page."""
        packing = Packing.of(page.tokens.mask)
        return self.text(page.tokens.ids, self.xpath(packing.pack(page.path)), packing)
