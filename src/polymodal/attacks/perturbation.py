"""Parts of attacks: white-box access to a model, projected gradient ascent in a pixel ball, word substitution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.attacks.masked_lm import MaskedLM, clean
from polymodal.attacks.stop_words import STOP_WORDS

UNKNOWN = "[UNK]"
TEXTS_AT_ONCE = 1024


class Victim:
    """White-box victim: a trained method that embeds, with gradients."""

    def __init__(self, method: Any, processor: Any):
        self.method = method
        self.processor = processor

    def encode_image(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Return L2-normalized image embeddings of pixels in 0-1, differentiable with respect to the pixels."""
        return self.method.embed({"image": self.processor.image.normalize(pixels)})["image"]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Return L2-normalized caption embeddings."""
        parts = [list(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)]
        return torch.cat([self.method.embed(self.processor(text=part))["text"] for part in parts])


Objective = Callable[[Float[Tensor, "batch 3 size size"]], Float[Tensor, ""]]


def projected_ascent(
    pixels: Float[Tensor, "batch 3 size size"],
    objective: Objective,
    eps: float,
    step_size: float,
    num_iters: int,
    generator: torch.Generator,
    decay_factor: float = 0.0,
) -> Float[Tensor, "batch 3 size size"]:
    """Maximize the objective within an L-infinity ball of radius `eps` around pixels in 0-1 (PGD, Madry et al. 2018).

    Starts at a random point of the ball and steps by the sign of the gradient. decay_factor: momentum of gradients
    normalized by their mean absolute value (MI-FGSM, Dong et al. 2018).
    """
    random = torch.rand(pixels.shape, generator=generator) * 2 - 1
    perturbed = (pixels + eps * random).clamp(0, 1)
    direction = torch.zeros_like(pixels)
    for _ in range(num_iters):
        perturbed.requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(perturbed), perturbed)
        norm = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        # g_t = mu * g_(t-1) + gradient / |gradient|_1 (MI-FGSM, equation 6).
        direction = decay_factor * direction + gradient / norm
        perturbed = perturbed.detach() + step_size * direction.sign()
        perturbed = torch.clamp(torch.minimum(torch.maximum(perturbed, pixels - eps), pixels + eps), 0, 1)
    return perturbed.detach()


def resized_copy(
    pixels: Float[Tensor, "batch 3 size size"], scale: float, noise_std: float, generator: torch.Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Add Gaussian noise, resize to another scale and back (bicubic), so that the attack survives rescaling."""
    size = pixels.shape[-1]
    noisy = pixels + noise_std * torch.randn(pixels.shape, generator=generator)
    resized = (max(int(scale * size), 1),) * 2
    small = F.interpolate(noisy, resized, mode="bicubic", align_corners=False)
    return F.interpolate(small.clamp(0, 1), (size, size), mode="bicubic", align_corners=False)


def padded_copy(
    pixels: Float[Tensor, "batch 3 size size"], smallest: float, generator: torch.Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Resize to a random smaller size and zero-pad at random (input diversity, DI-FGSM, Xie et al. 2019)."""
    size = pixels.shape[-1]
    side = int(torch.randint(round(smallest * size), size + 1, (), generator=generator))
    left, top = (int(torch.randint(size - side + 1, (), generator=generator)) for _ in range(2))
    small = F.interpolate(pixels, (side, side), mode="nearest")
    return F.pad(small, (left, size - side - left, top, size - side - top))


def words_by_importance(victim: Victim, captions: Sequence[list[str]]) -> list[list[int]]:
    """Rank the words of each caption by how much the embedding changes when a word is replaced by [UNK].

    The change is the KL divergence of softmax-normalized embeddings (BERT-Attack's released code for embeddings).
    """
    ablated = [
        " ".join([*words[:index], UNKNOWN, *words[index + 1 :]]) for words in captions for index in range(len(words))
    ]
    if not ablated:
        return [[] for _ in captions]
    original = victim.encode_text([" ".join(words) for words in captions]).softmax(-1)
    counts = torch.tensor([len(words) for words in captions])
    ablated_log_probs = victim.encode_text(ablated).log_softmax(-1)
    divergences = F.kl_div(ablated_log_probs, original.repeat_interleave(counts, 0), reduction="none").sum(-1)
    return [scores.argsort(descending=True, stable=True).tolist() for scores in divergences.split(counts.tolist())]


def in_place_of(word: str, other: str) -> str:
    """Replace a word, keeping the punctuation around it."""
    core = clean(word)
    start = word.lower().find(core)
    return word[:start] + other + word[start + len(core) :]


def with_one_word_changed(
    victim: Victim,
    model: MaskedLM,
    texts: Sequence[str],
    away_from: Float[Tensor, "texts dim"],
    top_k: int,
    max_length: int = 30,
    min_logit: float = 0.3,
) -> list[str]:
    """Replace at most one word per caption, to minimize the similarity to the embedding in the same row.

    Words are tried in the order of importance, without stop words, until a candidate of the language model lowers the
    similarity; the best candidate for that word is used. max_length: words at max_length - 1 and behind are not
    replaced, counted from 0, as the two special tokens count. min_logit: of candidates.
    """
    captions = [text.split() for text in texts]
    order = words_by_importance(victim, captions)
    positions = [
        [
            position
            for position in places
            if position <= max_length - 2 and (word := clean(captions[n][position])) and word not in STOP_WORDS
        ]
        for n, places in enumerate(order)
    ]
    best = (victim.encode_text(list(texts)) * away_from).sum(-1).tolist()
    changed = list(texts)
    active = [index for index, places in enumerate(positions) if places]
    while active:
        attempts = [(index, positions[index].pop(0)) for index in active]
        places = [(captions[index], position) for index, position in attempts]
        candidates = model.candidates(places, top_k, min_logit)
        variants = []
        for (index, position), words in zip(attempts, candidates, strict=True):
            before, word, after = captions[index][:position], captions[index][position], captions[index][position + 1 :]
            variants += [(index, " ".join([*before, in_place_of(word, other), *after])) for other in words]
        if variants:
            owner: Int[Tensor, " variants"] = torch.tensor([index for index, _ in variants])
            similarities = (victim.encode_text([text for _, text in variants]) * away_from[owner]).sum(-1).tolist()
            for (index, text), similarity in zip(variants, similarities, strict=True):
                if similarity < best[index]:
                    best[index], changed[index] = similarity, text
        active = [index for index in active if changed[index] == texts[index] and positions[index]]
    return changed
