"""BLIP's trio of losses on one text transformer: contrast (ITC), matching (ITM) and captioning (LM).

The multimodal mixture of encoder and decoder (Li et al. 2022, section 3.1) is a BERT with cross-attention to the image:
without it, it encodes texts alone (ITC); with it and bidirectional self-attention, it classifies pairs (ITM, with hard
negatives, section 3.2); with causal self-attention of its own, it writes captions (LM). Each of the last two has a
first token of its own in place of the start token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.processor import Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.layers.decoding import Decoding
from polymodal.layers.generation import generate_by_rereading
from polymodal.layers.logit_scale import CLIP_INIT, LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import END, Tokens, text_ids
from polymodal.models.fusion_encoder import MultimodalTextEncoder, MultimodalTextEncoderConfig
from polymodal.objectives.autoregressive import text_token_losses
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.objectives.reduction import global_mean
from polymodal.rng import ExampleRNG
from polymodal.types import Batch, Example

Pixels = Float[Tensor, "batch 3 size size"]
Visual = Float[Tensor, "batch visual width"]  # the class token (or pooled vector), then the patches
SPECIAL_TOKENS = 2  # [ENC] and [DEC], behind the tokenizer's entries


class BLIPBatch(TypedDict):
    """group: id of each text (`modalities.text.text_ids`); equal texts are no negatives of each other."""

    image: Float[Tensor, "batch 3 size size"]
    text: Tokens
    group: Float[Tensor, " batch"]


class BLIP(nn.Module):
    """An image encoder, the text transformer, and the heads."""

    def __init__(
        self, image: ImageEncoderConfig, text: MultimodalTextEncoderConfig, embed_dim: int, processor: Processor
    ):
        """text: its vocab_size is that of the tokenizer, in place of its maximum."""
        super().__init__()
        self.vocab_size = processor.tokenizer.vocab_size
        (self.end,) = processor.tokenizer.mark_ids(END)
        self.image_encoder = image.build()
        config = dataclasses.replace(text, vocab_size=self.vocab_size + SPECIAL_TOKENS)
        self.text_encoder = MultimodalTextEncoder(config, image.width)
        self.image_projection = nn.Linear(image.width, embed_dim)
        self.text_projection = nn.Linear(text.width, embed_dim)
        self.logit_scale = LogitScale(CLIP_INIT, max=1 / 0.001, min=1 / 0.5)  # temperatures of the released code
        self.itm_head = nn.Linear(text.width, 2)
        self.lm_head = MaskedLMHead(text.width, self.vocab_size)

    def visual_tokens(self, image: Pixels) -> Visual:
        """Return the class token (or pooled vector) and the patches."""
        patches, pooled = self.image_encoder(image)
        return torch.cat([pooled[:, None], patches], dim=1)

    def encode_image(self, image: Pixels) -> Float[Tensor, "batch dim"]:
        """Return L2-normalized embeddings."""
        return F.normalize(self.image_projection(self.image_encoder.pooled(image)), dim=-1)

    def encode_text(self, text: Tokens) -> Float[Tensor, "batch dim"]:
        """Return L2-normalized embeddings, by the first token of texts alone."""
        states = self.text_encoder.encode_text(text.ids, text.mask)
        return F.normalize(self.text_projection(states[:, 0]), dim=-1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        encoders: dict[str, Callable[[Any], Tensor]] = {"image": self.encode_image, "text": self.encode_text}
        return {name: encode(batch[name]) for name, encode in encoders.items() if name in batch}

    def match(self, text: Tokens, visual: Visual) -> Float[Tensor, "batch 2"]:
        """Return logits of "does not match" and "matches" (ITM)."""
        fused = self.text_encoder(self._started(text, self.vocab_size), text.mask, visual)
        return self.itm_head(fused[:, 0])

    def next_token_logits(self, text: Tokens, visual: Visual) -> Float[Tensor, "batch length entries"]:
        """Return the logits of the token after each position (LM)."""
        ids = self._started(text, self.vocab_size + 1)
        states = self.text_encoder(ids, text.mask, visual, causal=True)
        logits = self.lm_head(states.flatten(0, 1), self.text_encoder.token_embedding.weight)
        return logits.unflatten(0, states.shape[:2])

    def token_losses(
        self, text: Tokens, visual: Visual, label_smoothing: float = 0.0
    ) -> tuple[Float[Tensor, "batch predicted"], Bool[Tensor, "batch predicted"]]:
        """Return the cross-entropy of every token but the first, and False for padding; the end token counts."""
        return text_token_losses(self.next_token_logits(text, visual), text, label_smoothing)

    def trio_losses(self, batch: BLIPBatch, label_smoothing: float = 0.0) -> dict[str, Tensor]:
        """itc: symmetric InfoNCE. itm: cross-entropy of pairs. lm: nats per token, with label smoothing."""
        text, group, visual = batch["text"], batch["group"], self.visual_tokens(batch["image"])
        image_embedding = F.normalize(self.image_projection(visual[:, 0]), dim=-1)
        text_embedding = self.encode_text(text)
        similarity = (self.logit_scale() * image_embedding @ text_embedding.T).detach()
        pairs = sample_itm_pairs(similarity, group)  # positives first
        paired = Tokens(text.ids[pairs.text], text.lengths[pairs.text], text.special_tokens)
        nats, predicted = self.token_losses(text, visual, label_smoothing)
        return {
            "itc": info_nce(image_embedding, text_embedding, self.logit_scale(), labels=group),
            "itm": itm_loss(self.match(paired, visual[pairs.image]), pairs),
            "lm": global_mean(nats[predicted].sum(), predicted.sum()),
        }

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """Return the logit that each text matches each image."""
        text: Tokens = batch["text"]
        rows = []
        for visual in self.visual_tokens(batch["image"]):
            negative, positive = self.match(text, visual.expand(len(text), -1, -1)).unbind(1)
            rows.append(positive - negative)
        return torch.stack(rows)

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the log-probability of each `answer` as the caption of its `image`."""
        nats, predicted = self.token_losses(batch["answer"], self.visual_tokens(batch["image"]))
        return -(nats * predicted).sum(1)

    def generate_text(
        self, batch: Batch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Write captions of images, up to the context length; a question is not read."""
        visual, length = self.visual_tokens(batch["image"]), self.text_encoder.config.context_length

        def next_logits(text: Tokens, context: list[Tensor]) -> Tensor:
            return self.next_token_logits(text, *context)[:, -1]

        return generate_by_rereading(next_logits, [visual], self.end, length, decoding or Decoding(), generator)

    def _started(self, text: Tokens, first: int) -> Int[Tensor, "batch length"]:
        """Token ids with another first token."""
        return torch.cat([torch.full_like(text.ids[:, :1], first), text.ids[:, 1:]], dim=1)


def blip_batch(
    examples: Sequence[Example], processor: Processor, augmentation: ImageAugmentation, example_rng: ExampleRNG
) -> BLIPBatch:
    """Return one augmented view of each image and one of its captions."""
    images, captions = ([example[name] for example in examples] for name in ("image", "text"))
    image = processor.image.augmented(images, augmentation, example_rng, captions)
    texts = processor.text.sample_captions(captions, example_rng)
    return {"image": image, "text": processor.text(texts), "group": text_ids(texts)}
