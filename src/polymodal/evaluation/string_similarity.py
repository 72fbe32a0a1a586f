"""Rule-based similarity of strings, the baselines of record linkage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import squareform

N = 3  # characters of the longest n-gram


def levenshtein_similarity(a: Sequence[str], b: Sequence[str]) -> Float[np.ndarray, "a b"]:
    """Return 1 less the edit distance as a fraction of the longer string."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    return cdist(a, b, scorer=Levenshtein.normalized_similarity, dtype=np.float64)


def jaccard_similarity(a: Sequence[str], b: Sequence[str]) -> Float[np.ndarray, "a b"]:
    """Return how many of the character n-grams, up to trigrams, that two strings have at all are in both."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer="char_wb", ngram_range=(1, N), binary=True, dtype=np.float64)
    counts = counter.fit_transform(["x", *a, *b])[1:]  # without any character, there is no vocabulary
    first, second = counts[: len(a)], counts[len(a) :]
    both = (first @ second.T).toarray()
    either = first.sum(1).reshape(-1, 1) + second.sum(1).reshape(1, -1) - both
    return np.asarray(both / np.maximum(either, 1.0))


SIMILARITIES = {"levenshtein": levenshtein_similarity, "n-gram": jaccard_similarity}


class StringLinker:
    """Links records by their texts alone (`evaluation.linking.Linker`). name: of `SIMILARITIES`."""

    weights = (0.0,)

    def __init__(self, name: str):
        self.function = SIMILARITIES[name]

    def similarity(self, records: Sequence[str], weight: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        texts = [text.casefold() for text in records]
        return self.function([texts[row] for row in rows], [texts[column] for column in columns])

    def distances(self, records: Sequence[str], weight: float) -> np.ndarray:
        everyone = np.arange(len(records))
        return squareform(1 - self.similarity(records, weight, everyone, everyone), checks=False)
