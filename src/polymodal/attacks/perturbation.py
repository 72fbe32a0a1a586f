"""What attacks are made of: a victim's vectors with their gradient, steps in a ball of pixels, one other word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.attacks.masked_lm import STOP_WORDS, WordModel, clean

UNKNOWN = "[UNK]"
TEXTS_AT_ONCE = 1024


class Victim:
    """A trained method that embeds, as who has its weights sees it."""

    def __init__(self, method: Any, processor: Any):
        self.method = method
        self.processor = processor

    def encode_image(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of images on the scale 0-1; their gradient reaches the pixels."""
        return self.method.embed({"image": self.processor.image.normalize(pixels)})["image"]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Unit vectors of captions."""
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
    """Images within `eps` of each pixel that raise the objective (PGD, Madry et al. 2018), on the scale 0-1.

    It starts at a random place in the ball, and steps by the sign of the gradient. decay_factor: of gradients that are
    divided by their mean absolute value (MI-FGSM, Dong et al. 2018).
    """
    random = torch.rand(pixels.shape, generator=generator) * 2 - 1
    changed = (pixels + eps * random).clamp(0, 1)
    direction = torch.zeros_like(pixels)
    for _ in range(num_iters):
        changed.requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(changed), changed)
        size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        direction = decay_factor * direction + gradient / size
        changed = changed.detach() + step_size * direction.sign()
        changed = torch.clamp(torch.minimum(torch.maximum(changed, pixels - eps), pixels + eps), 0, 1)
    return changed.detach()


def resized_copy(
    pixels: Float[Tensor, "batch 3 size size"], scale: float, noise_std: float, generator: torch.Generator
) -> Float[Tensor, "batch 3 size size"]:
    """With Gaussian noise, at another size and back (bicubic), so that only what survives that is left."""
    size = pixels.shape[-1]
    noisy = pixels + noise_std * torch.randn(pixels.shape, generator=generator)
    other = (max(round(scale * size), 1),) * 2
    small = F.interpolate(noisy, other, mode="bicubic", align_corners=False)
    return F.interpolate(small.clamp(0, 1), (size, size), mode="bicubic", align_corners=False)


def padded_copy(
    pixels: Float[Tensor, "batch 3 size size"], smallest: float, generator: torch.Generator
) -> Float[Tensor, "batch 3 size size"]:
    """At a random smaller size, somewhere on black (input diversity, Xie et al. 2019)."""
    size = pixels.shape[-1]
    side = int(torch.randint(round(smallest * size), size + 1, (), generator=generator))
    left, top = (int(torch.randint(size - side + 1, (), generator=generator)) for _ in range(2))
    small = F.interpolate(pixels, (side, side), mode="nearest")
    return F.pad(small, (left, size - side - left, top, size - side - top))


def words_by_importance(victim: Victim, captions: Sequence[list[str]]) -> list[list[int]]:
    """The places of each caption's words, those first that change its vector most when they are unknown.

    Vectors are compared as distributions over dimensions, by their divergence (BERT-Attack's released code for
    embeddings).
    """
    lacking = [
        " ".join([*words[:place], UNKNOWN, *words[place + 1 :]]) for words in captions for place in range(len(words))
    ]
    whole = victim.encode_text([" ".join(words) for words in captions]).softmax(-1)
    counts = torch.tensor([len(words) for words in captions])
    without = victim.encode_text(lacking).log_softmax(-1)
    moved = F.kl_div(without, whole.repeat_interleave(counts, 0), reduction="none").sum(-1)
    return [part.argsort(descending=True, stable=True).tolist() for part in moved.split(counts.tolist())]


def in_place_of(word: str, other: str) -> str:
    """The other word with the punctuation that stands around the first."""
    core = clean(word)
    start = word.lower().find(core)
    return word[:start] + other + word[start + len(core) :]


def with_one_word_changed(
    victim: Victim,
    model: WordModel,
    texts: Sequence[str],
    away_from: Float[Tensor, "texts dim"],
    top_k: int,
) -> list[str]:
    """Each caption with at most one word replaced, so that its vector is least similar to the one beside it.

    Words are tried from the most important one on, stop words never, until a candidate of the language model lowers the
    similarity; among the candidates for that word the one that lowers it most is taken.
    """
    captions = [text.split() for text in texts]
    order = words_by_importance(victim, captions)
    waiting = [
        [place for place in places if (word := clean(captions[n][place])) and word not in STOP_WORDS]
        for n, places in enumerate(order)
    ]
    best = (victim.encode_text(list(texts)) * away_from).sum(-1).tolist()
    changed = list(texts)
    asking = [number for number, places in enumerate(waiting) if places]
    while asking:
        tried = [(number, waiting[number].pop(0)) for number in asking]
        offered = model.candidates([(captions[number], place) for number, place in tried], top_k)
        variants = []
        for (number, place), found in zip(tried, offered, strict=True):
            before, word, after = captions[number][:place], captions[number][place], captions[number][place + 1 :]
            variants += [(number, " ".join([*before, in_place_of(word, other), *after])) for other in found]
        if variants:
            owner: Int[Tensor, " variants"] = torch.tensor([number for number, _ in variants])
            similar = (victim.encode_text([text for _, text in variants]) * away_from[owner]).sum(-1).tolist()
            for (number, text), similarity in zip(variants, similar, strict=True):
                if similarity < best[number]:
                    best[number], changed[number] = similarity, text
        asking = [number for number in asking if changed[number] == texts[number] and waiting[number]]
    return changed
