"""Align before fuse: a video and a text encoder whose embeddings are compared, and a transformer over tokens of both.

ALBEF (Li et al. 2021, section 3) for clips, with merged attention in place of cross-attention, as in ALPRO (Li et al.
2022, section 3.1). Images are clips of one frame.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.video_text import FinetuneBatch, VideoTextBatch
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.projection_head import ProjectionHead
from polymodal.layers.transformer import Packing, Transformer
from polymodal.modalities.text import Tokens
from polymodal.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from polymodal.objectives.answers import answer_loss
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.objectives.masked_modeling import masked_lm_loss
from polymodal.types import Batch

Clips = Float[Tensor, "batch frames 3 size size"]
Words = Float[Tensor, "batch length width"]
Visual = Float[Tensor, "batch visual width"]  # the class token, then the patches


class VideoTextEncoders(DualEncoderModel):
    """A video and a text encoder of one width, and projections into one space."""

    video_encoder: Encoder
    text_encoder: Encoder
    video_projection: nn.Module
    text_projection: nn.Module

    def __init__(self, video: VideoEncoderConfig, text: TextEncoderConfig, embed_dim: int, vocab_size: int):
        super().__init__({"video": video.build(), "text": text.build(vocab_size)}, DualEncoderConfig(embed_dim))
        self.logit_scale = LogitScale(max=1 / 0.001, min=1 / 0.5)  # temperatures of ALBEF's released code

    def video_tokens(self, video: Clips) -> tuple[Visual, Float[Tensor, "batch dim"]]:
        """Return the class token (or pooled vector) and the patches, averaged over frames, and the embedding."""
        tokens, pooled = self.video_encoder(video)
        patches = tokens.unflatten(1, (video.shape[1], -1)).mean(1)
        return torch.cat([pooled[:, None], patches], dim=1), F.normalize(self.video_projection(pooled), dim=-1)

    def text_tokens(self, text: Tokens) -> tuple[Words, Float[Tensor, "batch dim"]]:
        """Return the padded tokens and the embedding."""
        packed, packing, pooled = self.text_encoder(text)
        return packing.pad(packed), F.normalize(self.text_projection(pooled), dim=-1)

    def encode_modality(self, name: str, value: Any) -> Float[Tensor, "batch dim"]:
        """Return L2-normalized embeddings; images are clips of one frame."""
        return super().encode_modality("video" if name == "image" else name, value)

    def encode_patches(self, image: Clips) -> Float[Tensor, "batch patches dim"]:
        """Return L2-normalized embeddings of all patches, averaged over frames, in the space of the texts."""
        return F.normalize(self.video_projection(self.video_tokens(image)[0][:, 1:]), dim=-1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {name: self.encode_modality(name, batch[name]) for name in ("video", "image", "text") if name in batch}


class AlignBeforeFuse(VideoTextEncoders):
    """The encoders, a fusion transformer, and the heads of ITM and MLM. The text encoder's last token is the mask."""

    def __init__(
        self,
        video: VideoEncoderConfig,
        text: TextEncoderConfig,
        embed_dim: int,
        vocab_size: int,
        fusion_depth: int,
        num_answers: int = 0,
    ):
        """vocab_size: entries of the tokenizer, without the mask token. num_answers: classes of question answering."""
        super().__init__(video, text, embed_dim, vocab_size + 1)
        width = text.width
        self.fusion = Transformer(width, fusion_depth, text.num_heads, dropout=text.dropout)
        self.fusion_norm = nn.LayerNorm(width)
        self.itm_head = nn.Linear(width, 2)
        self.mlm_head = MaskedLMHead(width, vocab_size)
        if num_answers:
            self.answer_head = ProjectionHead([width, 2 * width, num_answers], norm=None, bias=True)

    def fuse(self, words: Words, text_mask: Bool[Tensor, "batch length"], visual: Visual) -> tuple[Words, Visual]:
        """Fuse texts and clips by merged attention. text_mask: False for padding."""
        mask = torch.cat([text_mask, text_mask.new_ones(visual.shape[:2])], dim=1)
        packing = Packing.of(mask)
        packed = self.fusion(packing.pack(torch.cat([words, visual], dim=1)), packing)
        fused = packing.pad(self.fusion_norm(packed))
        return fused[:, : words.shape[1]], fused[:, words.shape[1] :]

    def pair_losses(self, batch: VideoTextBatch, use_itc: bool = True) -> tuple[dict[str, Tensor], Visual, Visual]:
        """Return ITC and ITM losses, and the visual tokens before fusion and after fusion with their own text.

        use_itc: without, there is no ITC, and ITM's negatives are uniformly random.
        """
        text, group = batch["text"], batch["group"]
        (visual, video_embedding), (words, text_embedding) = self.video_tokens(batch["video"]), self.text_tokens(text)
        losses = {}
        similarity = torch.zeros(len(words), len(words), device=words.device)
        if use_itc:
            losses["itc"] = info_nce(video_embedding, text_embedding, self.logit_scale(), labels=group)
            similarity = (self.logit_scale() * video_embedding @ text_embedding.T).detach()
        pairs = sample_itm_pairs(similarity, group)  # positives first
        fused_words, fused_visual = self.fuse(words[pairs.text], text.mask[pairs.text], visual[pairs.image])
        losses["itm"] = itm_loss(self.itm_head(fused_words[:, 0]), pairs)
        return losses, visual, fused_visual[: len(words)]

    def mlm_loss(self, masked: Tokens, text: Tokens, mask: Bool[Tensor, "batch length"], visual: Visual) -> Tensor:
        """Return the MLM loss of texts fused with clips. masked: what is given. mask: True for tokens to predict."""
        words, _ = self.fuse(self.text_tokens(masked)[0], text.mask, visual)
        embedding = self.text_encoder.get_parameter("embedding.weight")
        return masked_lm_loss(self.mlm_head, words, embedding, text.ids, mask)

    def finetuning_losses(self, batch: FinetuneBatch) -> dict[str, Tensor]:
        """Return ITC and ITM losses, and that of answers where the corpus has questions."""
        losses, visual, _ = self.pair_losses(batch)
        if "question" in batch:
            losses["vqa"] = answer_loss(self._answer_logits(batch["question"], visual), batch["answer"])
        return losses

    def answer_logits(self, batch: Batch) -> Float[Tensor, "batch answers"]:
        """Return the logits of the answers to one question about each clip or image."""
        return self._answer_logits(batch["question"], self.video_tokens(clips_of(batch))[0])

    def _answer_logits(self, question: Tokens, visual: Visual) -> Float[Tensor, "batch answers"]:
        fused, _ = self.fuse(self.text_tokens(question)[0], question.mask, visual)
        return self.answer_head(fused[:, 0])

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """Return the logit that each text matches each clip or image."""
        visual, words, text = self.video_tokens(clips_of(batch))[0], self.text_tokens(batch["text"])[0], batch["text"]
        rows = []
        for item in visual:
            fused, _ = self.fuse(words, text.mask, item.expand(len(words), -1, -1))
            negative, positive = self.itm_head(fused[:, 0]).unbind(1)
            rows.append(positive - negative)
        return torch.stack(rows)


def clips_of(batch: Batch) -> Clips:
    """Return the clips of a batch, or its images as clips of one frame."""
    return batch["video"] if "video" in batch else batch["image"]
