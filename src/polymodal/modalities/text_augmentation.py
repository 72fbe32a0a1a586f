"""Augmentation of captions: easy data augmentation (EDA, Wei and Zou 2019), on words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polymodal.constraints import NonNegativeFloat, UnitInterval

_SMALL = "a an and are as at be by for from in is it its of on or that the this to was were will with"
STOP_WORDS = frozenset(_SMALL.split(" "))
EDA_DELETION = 0.1  # probability of each word in EDA's random deletion (alpha of the paper, section 2)


@dataclass(frozen=True)
class TextAugmentation:
    """Removal of stop words, then exactly one operation of EDA (Wei and Zou 2019, section 2) on a caption."""

    remove_stop_words: UnitInterval = 0.8
    """Probability of removing stop words: articles, prepositions and the like."""
    synonym_weight: NonNegativeFloat = 0.0
    """How often a word is replaced by a synonym of WordNet (a download), relative to the other operations."""
    swap_weight: NonNegativeFloat = 0.4
    """How often two words are swapped, relative to the other operations."""
    delete_weight: NonNegativeFloat = 0.2
    """How often each word is deleted with probability 0.1, relative to the other operations."""


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


def without_stop_words(text: str, probability: float, rng: np.random.Generator) -> str:
    """Remove all stop words with this probability, unless no word would be left."""
    if rng.random() >= probability:
        return text
    return " ".join(word for word in text.split() if word.lower() not in STOP_WORDS) or text


def augment_text(
    text: str,
    augmentation: TextAugmentation,
    rng: np.random.Generator,
    synonyms: Callable[[str], Sequence[str]] | None = None,
) -> str:
    """Augment a caption, keeping at least one content word. Texts without spaces between words are unchanged.

    synonyms: of a word; without them, or for a caption whose words have none, a synonym replacement changes nothing.
    """
    text = without_stop_words(text, augmentation.remove_stop_words, rng)
    weights = np.array([augmentation.synonym_weight, augmentation.swap_weight, augmentation.delete_weight])
    words = text.split()
    if not weights.any() or not words:
        return text
    operation = ("synonym", "swap", "delete")[int(rng.choice(3, p=weights / weights.sum()))]
    if operation == "delete":
        remaining = without_words(text, EDA_DELETION, rng)
        return remaining if _has_content(remaining) or not _has_content(text) else text
    if operation == "swap" and len(words) > 1:
        first, second = rng.choice(len(words), size=2, replace=False)
        words[first], words[second] = words[second], words[first]
    if operation == "synonym" and synonyms is not None:
        candidates = [(index, options) for index, word in enumerate(words) if (options := synonyms(word))]
        if candidates:
            index, options = candidates[int(rng.integers(len(candidates)))]
            words[index] = options[int(rng.integers(len(options)))]
    return " ".join(words)


def report_sentences(text: str) -> list[str]:
    """Return the sentences of a report that have more than four tokens, or the text itself where none has.

    They end at numbers of a list and at a full stop before a blank; words and marks are tokens (MedCLIP, released
    code).
    """
    parts = re.split(r"[0-9]+\.+[^0-9]", " ".join(text.split("\n")))
    sentences = [sentence.strip() for part in parts for sentence in part.split(". ")]
    return [sentence for sentence in sentences if len(re.findall(r"\w+|[^\w\s]+", sentence)) > 4] or [text]


def sample_sentence(text: str, rng: np.random.Generator) -> str:
    """Sample one of the `report_sentences` of a text."""
    sentences = report_sentences(text)
    return sentences[int(rng.integers(len(sentences)))]


def _has_content(text: str) -> bool:
    return any(word.lower() not in STOP_WORDS for word in text.split())
