"""Augmentation of captions: easy data augmentation (EDA, Wei and Zou 2019), on words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polymodal.constraints import UnitInterval

_SMALL = "a an and are as at be by for from in is it its of on or that the this to was were will with"
STOP_WORDS = frozenset(_SMALL.split(" "))


@dataclass(frozen=True)
class TextAugmentation:
    """Probabilities of the steps, which are independent. EDA's synonyms come from sampling another caption instead."""

    remove_stop_words: UnitInterval = 0.8
    """Probability of removing stop words: articles, prepositions and the like."""
    swap_prob: UnitInterval = 0.2
    """Probability of swapping two words."""
    delete_prob: UnitInterval = 0.2
    """Probability of deleting one word."""


def without_words(text: str, share: float, rng: np.random.Generator) -> str:
    """Drop each word with probability `share`; at least one stays.

    Word dropout for encoders that average words (Iyyer et al. 2015, section 3.1). Texts without spaces between words
    are unchanged.
    """
    words = text.split()
    if not share or len(words) < 2:
        return text
    remaining = [word for word, chance in zip(words, rng.random(len(words)), strict=True) if chance >= share]
    return " ".join(remaining) if remaining else words[int(rng.integers(len(words)))]


def augment_text(text: str, augmentation: TextAugmentation, rng: np.random.Generator) -> str:
    """Augment a caption, keeping at least one content word. Texts without spaces between words are unchanged."""
    words = text.split()
    if rng.random() < augmentation.remove_stop_words:
        words = [word for word in words if word.lower() not in STOP_WORDS] or words
    if rng.random() < augmentation.swap_prob and len(words) > 1:
        first, second = rng.choice(len(words), size=2, replace=False)
        words[first], words[second] = words[second], words[first]
    if rng.random() < augmentation.delete_prob and len(words) > 1:
        content = [index for index, word in enumerate(words) if word.lower() not in STOP_WORDS]
        dropped = int(rng.integers(len(words)))
        if content != [dropped]:
            del words[dropped]
    return " ".join(words)
