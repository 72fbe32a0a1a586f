"""Random changes of captions: "easy data augmentation" (Wei and Zou 2019), on words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polymodal.constraints import UnitInterval

_SMALL = "a an and are as at be by for from in is it its of on or that the this to was were will with"
STOP_WORDS = frozenset(_SMALL.split(" "))


@dataclass(frozen=True)
class TextAugmentation:
    """What may happen to a caption; each step on its own. Synonyms come from drawing another caption instead."""

    remove_stop_words: UnitInterval = 0.8
    """Probability of removing articles, prepositions and the like."""
    swap_prob: UnitInterval = 0.2
    """Probability of exchanging two words."""
    delete_prob: UnitInterval = 0.2
    """Probability of dropping one word."""


def without_words(text: str, share: float, rng: np.random.Generator) -> str:
    """The text without words at random, each with probability `share`; at least one stays.

    What a reader that averages words learns from them does then not hang on few of them ("word dropout", Iyyer et al.
    2015, section 3.1). Texts without spaces between words stay as they are.
    """
    words = text.split()
    if not share or len(words) < 2:
        return text
    kept = [word for word, chance in zip(words, rng.random(len(words)), strict=True) if chance >= share]
    return " ".join(kept) if kept else words[int(rng.integers(len(words)))]


def augment_text(text: str, augmentation: TextAugmentation, rng: np.random.Generator) -> str:
    """A changed caption, which keeps at least one content word. Texts without spaces between words stay as they are."""
    words = text.split()
    if rng.random() < augmentation.remove_stop_words:
        words = [word for word in words if word.lower() not in STOP_WORDS] or words
    if rng.random() < augmentation.swap_prob and len(words) > 1:
        one, other = rng.choice(len(words), size=2, replace=False)
        words[one], words[other] = words[other], words[one]
    if rng.random() < augmentation.delete_prob and len(words) > 1:
        content = [index for index, word in enumerate(words) if word.lower() not in STOP_WORDS]
        dropped = int(rng.integers(len(words)))
        if content != [dropped]:
            del words[dropped]
    return " ".join(words)
