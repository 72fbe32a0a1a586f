"""Pre-training of a multiway encoder on captions: image-text contrast and masked language modeling.

VLMo (Bao et al. 2022, section 3.2) and BEiT-3 (Wang et al. 2023, section 2.2) on pairs alone: the dual encoder is
contrasted, the fusion encoder predicts masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.masked_input import MaskedTexts, mask_texts
from polymodal.data.processor import Processor
from polymodal.data.video_text import sample_captions
from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.padding import Padded
from polymodal.models.dual_encoder import ImageTextBatch
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.masked_modeling import masked_lm_loss
from polymodal.rng import ExampleRNG
from polymodal.types import Example


class CaptionBatch(ImageTextBatch, MaskedTexts):
    """Images, a caption of each, and the captions masked."""


def caption_batch(
    examples: Sequence[Example], processor: Processor, example_rng: ExampleRNG, ratio: float, keep_prob: float
) -> CaptionBatch:
    """Collate images and a caption of each; MLM predicts a fraction `ratio` of its tokens, and sees some of these."""
    text = processor.text(sample_captions(examples, processor, example_rng))
    mask_id = processor.text.tokenizer.vocab_size
    masked = mask_texts(text, ratio, mask_id, example_rng, keep_prob=keep_prob, random_prob=0.0)
    return {"image": processor.image([example["image"] for example in examples]), "text": text, **masked}


class MultiwayPretraining(nn.Module):
    """A multiway encoder, and the heads that it learns from captions with."""

    def __init__(self, config: MultiwayEncoderConfig, vocab_size: int, embed_dim: int, joint: bool = True):
        """vocab_size: entries of the tokenizer. embed_dim: dimensions in which images and texts are contrasted. joint:
        whether image and text attend to each other, except for ITC."""
        super().__init__()
        self.joint = joint
        self.encoder = config.build(vocab_size)
        self.mlm_head = MaskedLMHead(config.width, vocab_size)
        self.image_projection = nn.Linear(config.width, embed_dim, bias=False)
        self.text_projection = nn.Linear(config.width, embed_dim, bias=False)
        self.logit_scale = LogitScale()

    def caption_losses(self, batch: CaptionBatch) -> dict[str, Tensor]:
        """Return the ITC loss without attention between image and text, and the MLM loss."""
        text = batch["text"]
        _, patches, words = self.encoder(batch["image"], text, joint=False)
        # Means over patches and words, so that each of them tells what it shows.
        image_embedding = F.normalize(self.image_projection(patches.mean(1)), dim=-1)
        text_embedding = F.normalize(self.text_projection(Padded(words, text.lengths).mean()), dim=-1)
        _, _, fused = self.encoder(batch["image"], batch["mlm_text"], self.joint)
        return {
            "itc": info_nce(image_embedding, text_embedding, self.logit_scale()),
            "mlm": masked_lm_loss(self.mlm_head, fused, self.encoder.word.weight, text.ids, batch["masked_tokens"]),
        }
