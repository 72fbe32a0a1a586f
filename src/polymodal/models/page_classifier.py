"""Page encoder with a head that classifies words by field: token classification, as in LayoutLMv3 and FormNet."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.columns.words import NO_FIELD, first_pieces
from polymodal.data.pages import LabelledPageBatch, PageBatch
from polymodal.encoders.page import PageEncoder
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.reduction import mean_over


class PageClassifier(nn.Module):
    """What every method with an `encoder` of pages and a `field_head` over its tokens can do; it makes neither."""

    encoder: PageEncoder
    field_head: nn.Module

    @mean_over("num_tagged")
    def token_classification_losses(self, batch: LabelledPageBatch) -> dict[str, Tensor]:
        """Return the cross-entropy of the fields of tagged words."""
        tokens, _ = self.encoder(batch["words"], batch["image"])
        tagged = batch["fields"] != NO_FIELD
        loss = masked_cross_entropy(self.field_head(tokens)[tagged], batch["fields"][tagged])
        return {"token_classification": loss}

    def num_tagged(self, batch: LabelledPageBatch) -> dict[str, Tensor]:
        """Tokens with a field."""
        return {"token_classification": (batch["fields"] != NO_FIELD).sum()}

    def classify_tokens(self, batch: PageBatch) -> Float[Tensor, "words fields"]:
        """Return the field logits of all words of the batch, page by page, at the first token of each word."""
        tokens, _ = self.encoder(batch["words"], batch["image"])
        return self.field_head(tokens[first_pieces(batch["words"])])

    def features(self, batch: PageBatch) -> dict[str, Float[Tensor, "batch width"]]:
        """Return the CLS token of words and image, and the mean of the patch tokens of the image alone."""
        tokens = self.encode_page(batch)
        return {"page": tokens["text"][:, 0], "image": tokens["image"].mean(1)}

    def encode_page(self, batch: PageBatch) -> dict[str, Float[Tensor, "batch tokens width"]]:
        """Return the tokens of the text and of the patches, and the patch tokens of the image alone."""
        text, patches = self.encoder(batch["words"], batch["image"])
        image = self.encoder.encode_image(batch["image"])
        return {"text": text, "patches": patches[:, 1:], "image": image[:, 1:]}

    def load_pretrained_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load released weights of the encoder; what stands on it stays random."""
        self.encoder.load_layoutlmv3(weights)
