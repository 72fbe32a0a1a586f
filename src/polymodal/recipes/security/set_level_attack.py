"""SGA: set-level guidance attack, transferable adversarial images and captions against vision-language models.

An attack with one image and one caption overfits how its source model aligns the two. Here the image is a set of scaled
copies, and all of its captions guide it. First at most one word of each caption is replaced, away from the clean image;
then the image is perturbed, away from all adversarial captions; then the clean captions are attacked again, away from
the adversarial image (section 4 of the paper). Differs from the released code: candidates for a word come from a small
masked language model of whole words, trained on the corpus, so there are no candidates of several sub-words, and they
are those of the word itself, where the released code reads the logits one token too early. Fused models are attacked by
their unimodal embeddings, and re-rank by their matching head as targets.

Terms: SGA = Recipe.attack, PGD = attacks.perturbation.projected_ascent, scale-invariant image set =
attacks.perturbation.resized_copy, BERT-Attack = attacks.perturbation.with_one_word_changed, Sep-Attack =
Recipe.guidance, Co-Attack = Recipe.use_all_captions, MI-FGSM = Recipe.decay_factor, DI-FGSM =
attacks.perturbation.padded_copy, ASR = attacks.evaluate.success.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.attacks.masked_lm import MaskedLM, WordModel
from polymodal.attacks.perturbation import (
    Victim,
    padded_copy,
    projected_ascent,
    resized_copy,
    with_one_word_changed,
)
from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from polymodal.corpora.corpus import Corpus
from polymodal.types import Paper

paper = Paper(
    slug="set-level-attack",
    title="Set-level Guidance Attack: Boosting Adversarial Transferability of Vision-Language Pre-training Models",
    year=2023,
    arxiv="2307.14061",
    modalities=("image", "text"),
    code="Zoky-2020/SGA@f49e6926cd13148e49bdbc2c3e537660e096230c",
)


@dataclass(frozen=True)
class Recipe:
    eps: NonNegativeFloat = 2.0
    """Maximum change of a pixel (L-infinity), of 255."""
    num_iters: NonNegativeInt = 10
    """Steps of projected gradient ascent; 0 leaves a random change of the same size."""
    step_size: NonNegativeFloat = 0.5
    """Size of a step, of 255."""
    scales: tuple[PositiveFloat, ...] = (0.5, 0.75, 1.25, 1.5)
    """Scales of the image set beside the image itself; none for a single image."""
    scale_noise_std: NonNegativeFloat = 0.05
    """Standard deviation of the noise on scaled copies, of pixels in 0-1 (released code)."""
    use_all_captions: bool = True
    """Whether all of an image's captions guide it, or the first alone."""
    guidance: Literal["cross", "self"] = "cross"
    """What images and captions are moved away from: each other, or their own clean embedding (Sep-Attack)."""
    top_k: NonNegativeInt = 10
    """Candidates of the masked language model for a word; 0 leaves captions unchanged."""
    max_text_length: PositiveInt = 30
    """Maximum number of tokens of a caption, with two special tokens; words behind them are not replaced."""
    min_candidate_logit: float = 0.3
    """Minimum logit of a candidate word."""
    update_text_twice: bool = True
    """Whether the clean captions are attacked again, guided by the adversarial image."""
    attack_images: bool = True
    """Whether images are changed at all."""
    decay_factor: NonNegativeFloat = 0.0
    """Momentum of the gradient (MI-FGSM); the paper's comparison uses 1."""
    input_diversity_prob: NonNegativeFloat = 0.0
    """Probability that a step sees the image resized and padded at random (input diversity, DI-FGSM)."""
    restarts: PositiveInt = 1
    """Random starts; of each image the one is kept that is least similar to its captions."""

    def fit(self, corpus: Corpus, language: str | None, seed: int = 0) -> WordModel | None:
        """Return the language model of candidates; None where captions stay unchanged."""
        return WordModel.of(corpus, language, seed) if self.top_k else None

    def attack(
        self,
        method: Any,
        processor: Any,
        model: MaskedLM | None,
        pixels: Float[Tensor, "batch 3 size size"],
        captions: list[list[str]],
        seed: int = 0,
    ) -> tuple[Float[Tensor, "batch 3 size size"], list[list[str]]]:
        """Return adversarial images and captions.

        method, processor: the source model. model: what `fit` returned. pixels: in 0-1. captions: of each image, one or
        more.
        """
        victim, generator = Victim(method, processor), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            clean = victim.encode_image(pixels)
        # Pass 1: captions away from clean images. Pass 2: images away from adversarial captions.
        adversarial = self.edit(victim, model, captions, clean)
        if not self.attack_images:
            return pixels, adversarial
        guides = adversarial if self.guidance == "cross" else captions
        perturbed = self.perturb(victim, pixels, guides, clean, generator)
        if self.update_text_twice and self.guidance == "cross":
            # Pass 3: again from the clean captions, so that at most one word differs.
            with torch.no_grad():
                adversarial = self.edit(victim, model, captions, victim.encode_image(perturbed))
        return perturbed, adversarial

    def edit(
        self,
        victim: Victim,
        model: MaskedLM | None,
        captions: list[list[str]],
        images: Float[Tensor, "batch dim"],
    ) -> list[list[str]]:
        """Replace at most one word per caption, away from the embedding of its image or from its own."""
        if model is None:
            return captions
        texts = [text for own in captions for text in own]
        counts = torch.tensor([len(own) for own in captions])
        beside = images.repeat_interleave(counts, 0) if self.guidance == "cross" else victim.encode_text(texts)
        changed = iter(
            with_one_word_changed(
                victim, model, texts, beside, self.top_k, self.max_text_length, self.min_candidate_logit
            )
        )
        return [[next(changed) for _ in own] for own in captions]

    def perturb(
        self,
        victim: Victim,
        pixels: Float[Tensor, "batch 3 size size"],
        captions: list[list[str]],
        clean: Float[Tensor, "batch dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch 3 size size"]:
        """Perturb images within `eps`, away from the sum of their captions' embeddings, at all scales (equation 4)."""
        guides = [own if self.use_all_captions else own[:1] for own in captions]
        if self.guidance == "self":
            away_from = clean
        else:
            vectors = victim.encode_text([text for own in guides for text in own])
            away_from = torch.stack([part.sum(0) for part in vectors.split([len(own) for own in guides])])

        def apart(changed: Tensor) -> Float[Tensor, ""]:
            copies = [changed]
            copies += [resized_copy(changed, scale, self.scale_noise_std, generator) for scale in self.scales]
            if self.input_diversity_prob and torch.rand((), generator=generator) < self.input_diversity_prob:
                copies = [padded_copy(copy, 0.9, generator) for copy in copies]
            together = [-(victim.encode_image(copy) * away_from).sum(1).mean() for copy in copies]
            return torch.stack(together).sum()

        best, lowest = pixels, torch.full((len(pixels),), torch.inf)
        for _ in range(self.restarts):
            found = projected_ascent(
                pixels, apart, self.eps / 255, self.step_size / 255, self.num_iters, generator, self.decay_factor
            )
            with torch.no_grad():
                similarity = (victim.encode_image(found) * F.normalize(away_from, dim=1)).sum(1)
            better = similarity < lowest
            best = torch.where(better[:, None, None, None], found, best)
            lowest = torch.where(better, similarity, lowest)
        return best

    @classmethod
    def paper(cls) -> Recipe:
        """Return the defaults, which are those of the released code for images of 224 to 384 px (section 5.1).

        Source and target models of the paper: ALBEF, TCL, CLIP ViT-B/16 and CLIP ResNet-101, on Flickr30K and COCO.
        """
        return cls()
