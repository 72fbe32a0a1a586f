"""SGA: set-level guidance attack, transferable adversarial images and captions against vision-language models.

An attack with one image and one caption overfits how its own model aligns the two. Here the image stands for itself
at several sizes, and all of its captions guide it. First each caption loses a word, away from the clean image; then
the image moves, away from all edited captions; then the clean captions are edited again, away from the new image
(section 4 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.attacks.masked_lm import WordModel
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
)


@dataclass(frozen=True)
class Recipe:
    eps: NonNegativeFloat = 2.0
    """Largest change of a pixel's colour, of 255."""
    num_iters: NonNegativeInt = 10
    """Steps of projected gradient ascent; 0 leaves a random change of the same size."""
    step_size: NonNegativeFloat = 0.5
    """Size of a step, of 255."""
    scales: tuple[PositiveFloat, ...] = (0.5, 0.75, 1.25, 1.5)
    """Further sizes of the image, relative to its own, whose gradients are added; none for a single image."""
    scale_noise_std: NonNegativeFloat = 0.05
    """Standard deviation of the noise on the further sizes, on the scale 0-1 (released code)."""
    use_all_captions: bool = True
    """Whether all of an image's captions guide it, or the first alone."""
    guidance: Literal["cross", "self"] = "cross"
    """What images and captions are pushed away from: each other, or each from its own clean vector (Sep-Attack)."""
    top_k: NonNegativeInt = 10
    """Words of the masked language model that are tried in place of a word; 0 leaves captions as they are."""
    update_text_twice: bool = True
    """Whether the clean captions are edited anew once the image has moved."""
    attack_images: bool = True
    """Whether images are changed at all."""
    decay_factor: NonNegativeFloat = 0.0
    """Of the gradient from step to step (MI-FGSM); the paper's comparison uses 1."""
    input_diversity_prob: NonNegativeFloat = 0.0
    """Probability that a step sees the image smaller and moved (input diversity)."""
    restarts: PositiveInt = 1
    """Attempts from other random places; of each image the one is kept that is least similar to its captions."""

    def fit(self, corpus: Corpus, language: str | None, seed: int = 0) -> WordModel | None:
        """The language model that offers other words; None where captions stay as they are."""
        return WordModel.of(corpus, language, seed) if self.top_k else None

    def attack(
        self,
        method: Any,
        processor: Any,
        model: WordModel | None,
        pixels: Float[Tensor, "batch 3 size size"],
        captions: list[list[str]],
        seed: int = 0,
    ) -> tuple[Float[Tensor, "batch 3 size size"], list[list[str]]]:
        """The images and captions on which the method fails. model: what `fit` gave.

        pixels: on the scale 0-1. captions: of each image, one or more.
        """
        victim, generator = Victim(method, processor), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            clean = victim.encode_image(pixels)
        edited = self.edit(victim, model, captions, clean)
        if not self.attack_images:
            return pixels, edited
        guides = edited if self.guidance == "cross" else captions
        changed = self.perturb(victim, pixels, guides, clean, generator)
        if self.update_text_twice and self.guidance == "cross":
            with torch.no_grad():
                edited = self.edit(
                    victim, model, captions, victim.encode_image(changed)
                )  # from the clean ones, or 2 words go
        return changed, edited

    def edit(
        self,
        victim: Victim,
        model: WordModel | None,
        captions: list[list[str]],
        images: Float[Tensor, "batch dim"],
    ) -> list[list[str]]:
        """Captions with at most one other word, away from their image's vector or from their own."""
        if model is None:
            return captions
        texts = [text for own in captions for text in own]
        counts = torch.tensor([len(own) for own in captions])
        beside = images.repeat_interleave(counts, 0) if self.guidance == "cross" else victim.encode_text(texts)
        changed = iter(with_one_word_changed(victim, model, texts, beside, self.top_k))
        return [[next(changed) for _ in own] for own in captions]

    def perturb(
        self,
        victim: Victim,
        pixels: Float[Tensor, "batch 3 size size"],
        captions: list[list[str]],
        clean: Float[Tensor, "batch dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch 3 size size"]:
        """Images within `eps`, away from the sum of their captions' vectors, at all sizes (equation 4)."""
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
        """Flickr30K and COCO at 224 to 384 px (section 5.1), which are the defaults."""
        return cls()
