"""Pre-training of a multiway encoder on captions: image-text contrast and masked language modeling.

VLMo (Bao et al. 2022, section 3.2) and BEiT-3 (Wang et al. 2023, section 2.2) on pairs alone: the dual encoder is
contrasted, the fusion encoder predicts masked tokens.
"""

from __future__ import annotations

from typing import TypedDict

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.masked_modeling import masked_lm_loss


class CaptionBatch(TypedDict):
    """mlm_text: what MLM is given. masked_tokens: True for tokens that it predicts."""

    image: Float[Tensor, "batch 3 size size"]
    text: Tokens
    mlm_text: Tokens
    masked_tokens: Bool[Tensor, "batch length"]


class MultiwayPretraining(nn.Module):
    """A multiway encoder, and the heads that it learns from captions with."""

    def __init__(self, config: MultiwayEncoderConfig, vocab_size: int, embed_dim: int):
        """vocab_size: entries of the tokenizer. embed_dim: dimensions in which images and texts are contrasted."""
        super().__init__()
        self.encoder = config.build(vocab_size)
        self.mlm_head = MaskedLMHead(config.width, vocab_size)
        self.image_projection = nn.Linear(config.width, embed_dim, bias=False)
        self.text_projection = nn.Linear(config.width, embed_dim, bias=False)
        self.logit_scale = LogitScale()

    def pretraining_losses(self, batch: CaptionBatch, joint: bool = True) -> dict[str, Tensor]:
        """Return the ITC loss without attention between image and text, and the MLM loss.

        joint: whether there is such attention for MLM.
        """
        text = batch["text"]
        _, patches, words = self.encoder(batch["image"], text, joint=False)
        # Means over patches and words, so that each of them tells what it shows.
        image_embedding = F.normalize(self.image_projection(patches.mean(1)), dim=-1)
        text_embedding = F.normalize(self.text_projection(Padded(words, text.lengths).mean()), dim=-1)
        _, _, fused = self.encoder(batch["image"], batch["mlm_text"], joint)
        return {
            "itc": info_nce(image_embedding, text_embedding, self.logit_scale()),
            "mlm": masked_lm_loss(self.mlm_head, fused, self.encoder.word.weight, text.ids, batch["masked_tokens"]),
        }
