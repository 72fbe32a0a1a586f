"""Pre-training on captions with fusion in the backbone: ITC, ITM and MLM (FIBER, Dou et al. 2022, section 3.2).

ITC compares what the backbones encode apart, with a queue of earlier features; ITM and MLM fuse. The queue has the
images and texts, too, of which ITM takes hard negatives.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.masked_input import MaskedTexts
from polymodal.data.video_text import QuestionBatch
from polymodal.encoders.swin import SwinEncoderConfig
from polymodal.layers.cross_attention import init_transformer
from polymodal.layers.distributed import all_gather, rank
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.momentum_encoder import FeatureQueue
from polymodal.layers.projection_head import Pooler, ProjectionHead
from polymodal.layers.swin import FeatureMap
from polymodal.modalities.padding import mask_of
from polymodal.modalities.text import Tokens
from polymodal.models.dual_encoder import ImageTextBatch
from polymodal.models.fusion_encoder import FusionEncoderConfig
from polymodal.models.fusion_in_backbone import FusionInBackbone, RobertaConfig, Words, init_std
from polymodal.objectives.answers import answer_loss
from polymodal.objectives.image_text_matching import ITMPairs, itm_loss, sample_hard_negatives
from polymodal.objectives.masked_modeling import masked_lm_loss
from polymodal.objectives.multi_positive import multi_positive_cross_entropy
from polymodal.types import Batch

Images = Float[Tensor, "batch 3 size size"]
Features = Float[Tensor, "batch dim"]
Fusion = Literal["backbone", "top"]


class FusionBatch(ImageTextBatch, MaskedTexts):
    """group: id of each caption; equal captions are no negatives of each other. uniform: see `sample_itm_pairs`."""

    group: Float[Tensor, " batch"]
    uniform: Float[Tensor, "batch 2"]


class VQABatch(QuestionBatch):
    """Images, and a question about each with its answer."""

    image: Float[Tensor, "batch 3 size size"]


class ExampleQueue(nn.Module):
    """The newest pairs: embeddings, images and texts, with the ids of the captions (ALBEF's queue, with its inputs)."""

    def __init__(self, size: int, dim: int, image_size: int, context_length: int):
        super().__init__()
        self.image_size = image_size
        self.image_features, self.text_features = FeatureQueue(size, dim), FeatureQueue(size, dim)
        self.images, self.texts = FeatureQueue(size, 3 * image_size**2), FeatureQueue(size, context_length + 1)

    def enqueue(
        self, image_feature: Features, text_feature: Features, image: Images, text: Tensor, group: Tensor
    ) -> None:
        """Enqueue what all processes have. text: ids and the length of each, see `packed_text`."""
        for queue, value in (
            (self.image_features, image_feature),
            (self.text_features, text_feature),
            (self.images, image.flatten(1)),
            (self.texts, text.float()),
        ):
            queue.enqueue(value, group)

    def image(self, index: Int[Tensor, " rows"]) -> Images:
        return self.images.buffer[index].unflatten(1, (3, self.image_size, self.image_size))

    def text(self, index: Int[Tensor, " rows"]) -> Int[Tensor, "rows columns"]:
        return self.texts.buffer[index].long()


def packed_text(text: Tokens, context_length: int) -> Int[Tensor, "batch columns"]:
    """Return the ids, padded to the context length, and the length of each text as the last column."""
    ids = F.pad(text.ids, (0, max(context_length - text.ids.shape[1], 0)))[:, :context_length]
    return torch.cat([ids.masked_fill(~mask_of(text.lengths, context_length), 0), text.lengths[:, None]], dim=1)


class FusedPretraining(nn.Module):
    """Both backbones, projections and poolers of the two modes, and the heads of ITM, MLM and answers."""

    def __init__(
        self,
        image: SwinEncoderConfig,
        text: RobertaConfig,
        vocab_size: int,
        hidden_size: int,
        num_fuse_block: int,
        queue_size: int,
        fusion: Fusion = "backbone",
        top_width: int = 64,
        alpha_init: float = 0.0,
        num_answers: int = 0,
    ):
        """Build the model.

        vocab_size: entries of the tokenizer. hidden_size: dimensions of both embeddings and of each half of the fused
        one. queue_size: earlier pairs; 0: none. fusion: in the backbones, or by as many blocks of co-attention of
        `top_width` channels on top of them (METER). num_answers: classes of question answering.
        """
        super().__init__()
        in_backbone = fusion == "backbone"
        self.image_size = image.image_size
        self.backbone = FusionInBackbone(image, text, vocab_size, num_fuse_block * in_backbone, alpha_init)
        self.top = None
        image_width, text_width = image.widths[-1], text.width
        if not in_backbone:
            top = FusionEncoderConfig("co_attention", top_width, num_fuse_block, num_heads=text.num_heads, norm="post")
            self.top = top.build(text_width, image_width)
            init_transformer(self.top, init_std(top_width))  # as the fused blocks of the backbones
        fused_widths = (image_width, text_width) if in_backbone else (top_width, top_width)
        self.image_transform, self.text_transform = (nn.Linear(width, hidden_size) for width in fused_widths)
        self.image_transform_itc = nn.Linear(image_width, hidden_size)
        self.text_transform_itc = nn.Linear(text_width, hidden_size)
        self.image_pooler, self.text_pooler = Pooler(hidden_size, hidden_size), Pooler(hidden_size, hidden_size)
        self.image_pooler_itc, self.text_pooler_itc = Pooler(hidden_size, hidden_size), Pooler(hidden_size, hidden_size)
        self.logit_scale = LogitScale(min=1.0, max=1 / 0.001)
        self.itm_head = nn.Linear(2 * hidden_size, 2)
        self.mlm_head, self.mlm_decoder = MaskedLMHead(hidden_size, vocab_size), nn.Embedding(vocab_size, hidden_size)
        for module in (self.itm_head, self.mlm_decoder, self.mlm_head.dense):
            nn.init.normal_(module.weight, std=0.02)
        self.queue_size = queue_size
        # Without earlier pairs it stays empty.
        self.queue = ExampleQueue(max(queue_size, 1), hidden_size, image.image_size, text.context_length)
        self.pending: tuple[Tensor, ...] | None = None
        if num_answers:
            sizes = [2 * hidden_size, 2 * hidden_size, num_answers]
            self.answer_head = ProjectionHead(sizes, norm="layer", activation="gelu", bias=True)

    def resized(self, image: Float[Tensor, "batch 3 _ _"]) -> Images:
        """Resize images to the resolution of this stage."""
        if image.shape[-1] == self.image_size:
            return image
        return F.interpolate(image, size=(self.image_size,) * 2, mode="bilinear", antialias=True)

    def encode_modality(self, name: str, value: Any) -> Features:
        """Return L2-normalized embeddings of images or texts, encoded with the gates off."""
        if name == "image":
            return self._image_embedding(self.backbone.lower_image(self.resized(value))[0])
        return self._text_embedding(*self.backbone.lower_text(value))

    def _image_embedding(self, x: FeatureMap) -> Features:
        patches = self.image_transform_itc(self.backbone.upper_image(x).flatten(1, 2))
        return F.normalize(self.image_pooler_itc(patches.mean(1)), dim=-1)

    def _text_embedding(self, words: Words, mask: Bool[Tensor, "batch length"]) -> Features:
        words = self.text_transform_itc(self.backbone.upper_text(words, mask))
        return F.normalize(self.text_pooler_itc(words[:, 0]), dim=-1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {name: self.encode_modality(name, batch[name]) for name in ("image", "text") if name in batch}

    def fuse(
        self, x: FeatureMap, words: Words, mask: Bool[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch double_dim"]]:
        """Fuse what the lower blocks gave of pairs.

        Returns the words and the pooled vector of each pair: that of the first word, then that of the patches.
        """
        if self.top is None:
            states = self.backbone.upper(x, words, mask, last_norm=False)
            words, patches = states.words, states.patches
        else:
            words, patches = self.top(words, mask, self.backbone.upper_image(x).flatten(1, 2))
        words, patches = self.text_transform(words), self.image_transform(patches)
        pooled = [self.text_pooler(words[:, 0]), self.image_pooler(patches.mean(1))]
        return words, torch.cat(pooled, dim=1)

    def pair_losses(self, batch: FusionBatch) -> dict[str, Tensor]:
        """Return the losses of ITC, ITM and MLM, each with weight 1; they compare the examples of a batch."""
        image, text, group = self.resized(batch["image"]), batch["text"], batch["group"]
        packed = packed_text(text, self.backbone.text_encoder.config.context_length)
        x, (words, mask) = self.backbone.lower_image(image)[0], self.backbone.lower_text(text)
        image_feature, text_feature = self._image_embedding(x), self._text_embedding(words, mask)
        # Keys are detached, and those of the queue follow those of the batch of all processes.
        labels = torch.cat([all_gather(group), self.queue.image_features.labels.to(group)])
        image_keys = torch.cat([all_gather(image_feature.detach()), self.queue.image_features.features])
        text_keys = torch.cat([all_gather(text_feature.detach()), self.queue.text_features.features])
        scale = self.logit_scale()
        itc = multi_positive_cross_entropy(image_feature, text_keys, group, labels, scale)
        itc = (itc + multi_positive_cross_entropy(text_feature, image_keys, group, labels, scale)) / 2
        with torch.no_grad():
            positive, uniform = group[:, None] == labels, batch["uniform"]
            similarities = scale * image_feature @ text_keys.T, scale * text_feature @ image_keys.T
            to_text, has_text = sample_hard_negatives(similarities[0], positive, uniform[:, 0])
            to_image, has_image = sample_hard_negatives(similarities[1], positive, uniform[:, 1])
            base = torch.arange(len(group), device=group.device) + len(group) * rank()
            to_text, to_image = torch.where(has_text, to_text, base), torch.where(has_image, to_image, base)
            rows = _candidates(all_gather(packed), self.queue.text, to_text)
            negative_image = _candidates(all_gather(image), self.queue.image, to_image)
        negative_text = Tokens(rows[:, : max(int(rows[:, -1].max()), words.shape[1])], rows[:, -1])
        itm = self.matching_loss(x, words, mask, negative_image, negative_text, torch.cat([has_text, has_image]))
        masked, _ = self.fuse(x, *self.backbone.lower_text(batch["mlm_text"]))
        length = masked.shape[1]  # padding beyond the context is cut
        targets, masked_tokens = text.ids[:, :length], batch["masked_tokens"][:, :length]
        mlm = masked_lm_loss(self.mlm_head, masked, self.mlm_decoder.weight, targets, masked_tokens)
        if self.training and self.queue_size:
            self.pending = (image_feature.detach(), text_feature.detach(), image, packed, group)
        return {"itc": itc, "itm": itm, "mlm": mlm}

    def matching_loss(
        self,
        x: FeatureMap,
        words: Words,
        mask: Bool[Tensor, "batch length"],
        negative_image: Images,
        negative_text: Tokens,
        is_negative: Bool[Tensor, " double_batch"],
    ) -> Float[Tensor, ""]:
        """Return the ITM loss of the pairs, of the images with a negative text, and of the texts with a negative image.

        x, words, mask: what the lower blocks gave of the pairs. is_negative: False for negatives that are none.
        """
        negative_x = self.backbone.lower_image(negative_image)[0]
        negative_words, negative_mask = self.backbone.lower_text(negative_text)
        more = negative_words.shape[1] - words.shape[1]
        words, mask = F.pad(words, (0, 0, 0, more)), F.pad(mask, (0, more))
        _, pooled = self.fuse(
            torch.cat([x, x, negative_x]),
            torch.cat([words, negative_words, words]),
            torch.cat([mask, negative_mask, mask]),
        )
        index, valid = (
            torch.arange(len(pooled), device=x.device),
            torch.cat([is_negative.new_ones(len(x)), is_negative]),
        )
        return itm_loss(self.itm_head(pooled), ITMPairs(index, index, (index < len(x)).long(), valid))

    def fused_maps(
        self, image: Float[Tensor, "batch 3 size size"], text: Tokens, window: int | None
    ) -> tuple[list[Tensor], Words]:
        """Return the maps of all stages and the words of pairs, at any resolution; see `FusionInBackbone`."""
        states = self.backbone(image, text, window=window)
        words = states.words
        if self.top is not None:  # its words read the image, but it has no maps of several resolutions
            patches = self.backbone.image_encoder.norm_post(states.maps[-1]).flatten(1, 2)
            words = self.top(words, text.mask[:, : words.shape[1]], patches).text
        return states.maps, words

    def after_step(self, fraction: float = 0.0) -> None:
        """Enqueue the pairs of the step."""
        if self.pending is not None:
            self.queue.enqueue(*self.pending)
            self.pending = None

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """Return the logit that each text matches each image."""
        (words, mask), rows = self.backbone.lower_text(batch["text"]), []
        for x in self.backbone.lower_image(self.resized(batch["image"]))[0]:
            _, pooled = self.fuse(x.expand(len(words), -1, -1, -1), words, mask)
            negative, positive = self.itm_head(pooled).unbind(1)
            rows.append(positive - negative)
        return torch.stack(rows)

    def answer_losses(self, batch: VQABatch) -> dict[str, Tensor]:
        """Return the cross-entropy of the answers that are in the vocabulary."""
        return {"vqa": answer_loss(self.answer_logits(batch), batch["answer"])}

    def answer_logits(self, batch: Batch) -> Float[Tensor, "batch answers"]:
        """Return the logits of the answers to one question about each image."""
        x, _ = self.backbone.lower_image(self.resized(batch["image"]))
        return self.answer_head(self.fuse(x, *self.backbone.lower_text(batch["question"]))[1])


def _candidates(of_batch: Tensor, of_queue: Any, index: Int[Tensor, " rows"]) -> Tensor:
    """Return the candidates of these indices: of the batch of all processes, then of the queue."""
    count = len(of_batch)
    chosen, queued = of_batch[index.clamp(max=count - 1)], index >= count
    if queued.any():
        chosen[queued] = of_queue(index[queued] - count).to(chosen)
    return chosen
