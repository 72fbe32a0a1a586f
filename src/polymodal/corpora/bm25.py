"""BM25 (Robertson and Zaragoza 2009): lexical hard negatives, and the baseline of every search by vectors."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

# Identifiers are split at underscores, at digits and at capitals, so that code and prose share words.
WORD = re.compile(r"[^\W\d_]+|\d+")
CAPITAL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def lexical_tokens(text: str) -> list[str]:
    """Return the words of a text or of code in lower case: `readAll_lines` has read, all and lines."""
    return WORD.findall(CAPITAL.sub(" ", text).lower())


class BM25:
    """Index of texts, with k1 = 1.5 and b = 0.75. A text without a known word has the score 0 everywhere."""

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        """Index the texts. k1: saturation of term frequencies. b: normalization by length, from 0 to 1."""
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)
        tokens = [lexical_tokens(text) for text in texts]
        self.count = len(tokens)
        self._words = {word for words in tokens for word in words}
        self._retriever = bm25s.BM25(k1=k1, b=b)
        if self._words:
            self._retriever.index(tokens, show_progress=False)

    def scores(self, query: str) -> Float[np.ndarray, " texts"]:
        """Return the score of every text; a word of the query counts as often as it occurs there."""
        words = [word for word in lexical_tokens(query) if word in self._words]
        return self._retriever.get_scores(words).astype(np.float64) if words else np.zeros(self.count)

    def top(self, query: str, count: int, excluded: Sequence[int] = ()) -> Int[np.ndarray, " found"]:
        """Return the numbers of the texts with the highest positive scores, best first, without the excluded ones."""
        scores = self.scores(query)
        scores[list(excluded)] = 0.0
        order = np.argsort(-scores, kind="stable")[:count]
        return order[scores[order] > 0]
