"""Texts about rated images: levels of a score, texts that a score generates, and purification of comments (UniQA)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

QUALITY_LEVELS = ("bad", "poor", "fair", "good", "perfect")  # ascending
# Prompts in ascending order (released code); the first group stands alone without prompt ensemble.
PROMPT_GROUPS = (
    tuple(f"{level} image" for level in QUALITY_LEVELS),
    ("extremely blurry image", "blurry image", "fair image", "sharp image", "extremely sharp image"),
    ("extremely noisy image", "noisy image", "fair image", "noise-free image", "extremely noise-free image"),
    (
        *("extremely low-quality image", "low-quality image", "fair image", "high-quality image"),
        "extremely high-quality image",
    ),
)
# Synonyms of each level for texts that are generated without a language model.
SYNONYMS = (
    ("bad", "terrible"),
    ("poor", "weak"),
    ("fair", "average"),
    ("good", "nice"),
    ("perfect", "excellent"),
)
TEMPLATES = ("{level} image", "image of {level} {name}", "the {name} of this image is {level}")


def level_index(score: float) -> int:
    """Return the level of a score between 0 and 1: one of five intervals of equal length, 0 the worst."""
    return min(max(int(score * len(QUALITY_LEVELS)), 0), len(QUALITY_LEVELS) - 1)


def instruction(name: str, score: float) -> str:
    """Return the prompt for a multimodal language model that is to describe a rated image (section 3.2).

    name: of the score; a name with "aesthetic" asks for aspects of aesthetics, every other for those of quality.
    """
    is_aesthetic = "aesthetic" in name.lower()
    aspects = "content, color, lighting and composition" if is_aesthetic else "sharpness, noise, color and artifacts"
    what = "aesthetics" if is_aesthetic else "quality"
    return f"This is a {QUALITY_LEVELS[level_index(score)]} image. Describe the {what} of the image by its {aspects}."


def texts_of_score(name: str, score: float) -> list[str]:
    """Return all texts that the templates make of a score between 0 and 1."""
    return [
        template.format(level=level, name=name.replace("_", " "))
        for level in SYNONYMS[level_index(score)]
        for template in TEMPLATES
    ]


def purified(
    comments: Sequence[str], relevance: Float[np.ndarray, " comments"] | Sequence[float], count: int
) -> list[str]:
    """Return the comments of an image that are kept, best first: the largest AR + IR (section 3.3).

    AR: rank of the relevance, the similarity with the generated text. IR: rank of the length in words, for
    informativeness. Comments that are equal in one of them share the mean rank.
    """
    from scipy.stats import rankdata

    lengths = [len(comment.split()) for comment in comments]
    total = rankdata(relevance) + rankdata(lengths)
    return [comments[place] for place in np.argsort(-total, kind="stable")[:count]]


def words_of_text(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"[\w'-]+", text.lower())


def tf_idf_similarity(reference: str, texts: Sequence[str], idf: Mapping[str, float]) -> Float[np.ndarray, " texts"]:
    """Return cosines of TF-IDF vectors with that of a reference. idf: of known words; others do not count."""

    def vector(text: str) -> dict[str, float]:
        counts = Counter(word for word in words_of_text(text) if word in idf)
        weights = {word: count * idf[word] for word, count in counts.items()}
        norm = sum(weight**2 for weight in weights.values()) ** 0.5
        return {word: weight / norm for word, weight in weights.items()} if norm else {}

    wanted = vector(reference)
    return np.array([sum(weight * wanted.get(word, 0.0) for word, weight in vector(text).items()) for text in texts])
