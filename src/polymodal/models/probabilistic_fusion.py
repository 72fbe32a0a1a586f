"""Probabilistic fusion: an image and a text encoder, co-attention of both, and Gaussians of tokens before and after it.

The architecture of METER (Dou et al. 2022) with the probability distribution encoders of MAP (Ji et al. 2023, section
3.2): [CLS] of both are compared by 2-Wasserstein distance before fusion, and heads read samples after it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.data.masked_input import MaskedTexts
from polymodal.data.processor import Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.layers.gaussian import DiagonalGaussian, example_noise
from polymodal.layers.logit_scale import CLIP_INIT, LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.probability_distribution_encoder import ProbabilityDistributionEncoder
from polymodal.layers.projection_head import Pooler
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import Tokens
from polymodal.models.fusion_encoder import FusionEncoderConfig
from polymodal.models.multiway_pairs import PairsBatch, PairsQuestionBatch, sample_image_pairs
from polymodal.objectives.wasserstein import sphere_vectors
from polymodal.rng import ExampleRNG
from polymodal.types import Batch, Example

TEXT, IMAGE, WORDS = range(3)  # streams of noise
TextMask = Bool[Tensor, "batch length"] | None
TokenKind = Literal["gaussians", "points", "wide_points"]
FIRST = (slice(None), 0)  # the first token of every sequence
Fused = tuple[DiagonalGaussian, DiagonalGaussian]  # of all text and of all image tokens


class NoisyPairsBatch(PairsBatch):
    """seed: of the noise of each example's samples. uniform: whether an image is false, and which one it is."""

    seed: Int[Tensor, " batch"]


class NoisyMaskedText(NoisyPairsBatch, MaskedTexts):
    """Pairs, and texts with masked tokens."""


class NoisyQuestion(NoisyPairsBatch, PairsQuestionBatch):
    """Pairs, and questions about the images where the corpus has any."""


def sample_noisy_pairs(
    examples: list[Example], processor: Processor, augmentation: ImageAugmentation, example_rng: ExampleRNG
) -> NoisyPairsBatch:
    """Return augmented images and one of each one's captions, and what decides about false images and samples."""
    seed = torch.from_numpy((example_rng.seeds >> np.uint64(1)).astype(np.int64))
    return {**sample_image_pairs(examples, processor, augmentation, example_rng), "seed": seed}


class ProbabilisticFusion(nn.Module):
    """Encoders, PDEs before fusion, co-attention, PDEs after it, and the heads of MLM, ITM and answers.

    The text encoder's last token is the mask, where it is not a pretrained one.
    """

    def __init__(
        self,
        image: ImageEncoderConfig,
        text: TextEncoderConfig,
        fusion: FusionEncoderConfig,
        vocab_size: int,
        num_answers: int = 0,
        samples: int = 5,
        kind: TokenKind = "gaussians",
        sequence_attention: bool = True,
        temperature: float = 1 / CLIP_INIT,
    ):
        """vocab_size: entries of the tokenizer, without the mask token. num_answers: classes of question answering.
        samples: of each Gaussian that a head reads, besides its mean. kind: points are Gaussians of equal sigma, of
        which heads read the means; wide points before fusion have what would be log sigma as further coordinates.
        sequence_attention: see the PDE."""
        super().__init__()
        self.samples, self.kind, width = samples if kind == "gaussians" else 0, kind, fusion.width
        self.image_encoder, self.text_encoder = image.build(), text.build(vocab_size + 1)
        self.fusion = fusion.build(text.width, image.width)
        for place in ("image_contrast", "text_contrast", "image", "text"):
            pde = ProbabilityDistributionEncoder(width, fusion.num_heads, fusion.dropout, sequence_attention)
            self.add_module(f"{place}_pde", pde)
        self.image_pooler, self.text_pooler = Pooler(width, width), Pooler(width, width)
        self.logit_scale = LogitScale(1 / temperature)
        self.mlm_head, self.mlm_decoder = MaskedLMHead(width, vocab_size), nn.Embedding(vocab_size, width)
        nn.init.normal_(self.mlm_decoder.weight, std=0.02)
        self.itm_head, wide = nn.Linear(2 * width, 2), 2 * width
        if num_answers:
            last = nn.Linear(wide, num_answers)
            self.answer_head = nn.Sequential(nn.Linear(wide, wide), nn.LayerNorm(wide), nn.GELU(), last)

    def image_tokens(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches width"]:
        """Return [CLS] (or the pooled vector) and the patches."""
        patches, pooled = self.image_encoder(image)
        return torch.cat([pooled[:, None], patches], dim=1)

    def text_tokens(self, text: Tokens) -> Float[Tensor, "batch length width"]:
        """Return all tokens; the first is the start token, which stands for the text."""
        packed, packing, _ = self.text_encoder(text)
        return packing.pad(packed)

    def distribution(
        self, place: str, x: Float[Tensor, "batch tokens width"], mask: TextMask = None, count: int | None = None
    ) -> DiagonalGaussian:
        """Return the Gaussians of the first `count` tokens, by default of all, by one of the four PDEs."""
        gaussian: DiagonalGaussian = self.get_submodule(f"{place}_pde")(x, mask, count)
        if self.kind == "gaussians":
            return gaussian
        return DiagonalGaussian(gaussian.mean, torch.zeros_like(gaussian.mean))

    def contrasted(
        self, name: str, tokens: Float[Tensor, "batch tokens width"], mask: TextMask = None
    ) -> DiagonalGaussian:
        """Return the Gaussian of [CLS] before fusion. name: image or text. tokens: of its encoder."""
        projected = self.fusion.get_submodule(f"{name}_projection")(tokens)
        if self.kind == "wide_points":
            gaussian: DiagonalGaussian = self.get_submodule(f"{name}_contrast_pde")(projected, mask, 1)
            point = torch.cat(gaussian.select(FIRST), dim=-1)
            return DiagonalGaussian(point, torch.zeros_like(point))
        return self.distribution(f"{name}_contrast", projected, mask, 1).select(FIRST)

    def fuse(
        self,
        words: Float[Tensor, "batch length width"],
        text: Tokens,
        patches: Float[Tensor, "batch patches image_width"],
        count: int | None = None,
    ) -> Fused:
        """Return the Gaussians of the first `count` text and image tokens after fusion, by default of all."""
        fused = self.fusion(words, text.mask, patches)
        return (
            self.distribution("text", fused.text, text.mask, count),
            self.distribution("image", fused.image, None, count),
        )

    def pooled_copies(self, fused: Fused, seeds: Int[Tensor, " seeds"]) -> Float[Tensor, "copies batch wide"]:
        """Return what heads of pairs read: first text and first image token, in the mean and in every sample.

        seeds: of the noise of each pair, or one for all.
        """
        parts = []
        streams = ((TEXT, self.text_pooler), (IMAGE, self.image_pooler))
        for (stream, pooler), tokens in zip(streams, fused, strict=True):
            first = tokens.select(FIRST)
            noise = example_noise(seeds, torch.ones_like(seeds), self.samples, first.mean.shape[-1], stream)
            copies = first.copies(noise.expand(-1, len(first.mean), -1))
            parts.append(pooler(copies))
        return torch.cat(parts, dim=-1)

    def mlm_logits(
        self, text: DiagonalGaussian, mask: Bool[Tensor, "batch length"], seeds: Int[Tensor, " batch"]
    ) -> Float[Tensor, "copies masked vocab_size"]:
        """Return the logits of masked tokens, in the mean and in every sample."""
        masked = text.select(mask)
        copies = masked.copies(example_noise(seeds, mask.sum(1), self.samples, masked.mean.shape[-1], WORDS))
        return self.mlm_head(copies.flatten(0, 1), self.mlm_decoder.weight).unflatten(0, copies.shape[:2])

    def embed_gaussians(self, batch: Batch) -> dict[str, DiagonalGaussian]:
        """Return the Gaussians of images and texts before fusion."""
        gaussians = {}
        if "image" in batch:
            gaussians["image"] = self.contrasted("image", self.image_tokens(batch["image"]))
        if "text" in batch:
            gaussians["text"] = self.contrasted("text", self.text_tokens(batch["text"]), batch["text"].mask)
        return gaussians

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return L2-normalized vectors whose inner products are in the order of 2-Wasserstein distances."""
        return {name: sphere_vectors(gaussian) for name, gaussian in self.embed_gaussians(batch).items()}

    def fused_log_sigma(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the mean log sigma of each text's first token, fused with its image."""
        text, _ = self.fuse(self.text_tokens(batch["text"]), batch["text"], self.image_tokens(batch["image"]), 1)
        return text.select(FIRST).log_sigma.mean(-1)

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """Return the logit that each text matches each image, averaged over the mean and samples of a fixed seed."""
        text, words, rows = batch["text"], self.text_tokens(batch["text"]), []
        for patches in self.image_tokens(batch["image"]):
            fused = self.fuse(words, text, patches.expand(len(words), -1, -1), 1)
            negative, positive = self._mean_logits(self.itm_head, fused).unbind(1)
            rows.append(positive - negative)
        return torch.stack(rows)

    def answer_logits(self, batch: Batch) -> Float[Tensor, "batch answers"]:
        """Return the logits of the answers to one question about each image, averaged as those of pairs are."""
        question = batch["question"]
        fused = self.fuse(self.text_tokens(question), question, self.image_tokens(batch["image"]), 1)
        return self._mean_logits(self.answer_head, fused)

    def _mean_logits(self, head: nn.Module, fused: Fused) -> Float[Tensor, "batch classes"]:
        seed = torch.zeros(1, dtype=torch.long, device=fused[0].mean.device)
        return head(self.pooled_copies(fused, seed)).mean(0)
