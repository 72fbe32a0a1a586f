"""N-gram language model for perplexity filtering.

Subword n-grams of up to order 5 with Witten-Bell interpolation (1991). CCNet and OBELICS use KenLM, which must be
compiled.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import tokenizers

from polymodal.corpora._html import lines
from polymodal.modalities.text import TextTokenizer

ORDER, PIECES = 5, 4000
START, END = -1, -2


@dataclass(frozen=True)
class NGramModel:
    """N-gram counts.

    counts: for each context of at most four pieces, counts of the next piece; the empty context has unigrams.
    """

    tokenizer: str
    counts: dict[tuple[int, ...], Counter[int]]
    vocabulary: int

    @classmethod
    def fit(cls, texts: Sequence[str], pieces: int = PIECES) -> NGramModel:
        """Fit the tokenizer and count n-grams. pieces: vocabulary size of the tokenizer."""
        all_lines = [line for text in texts for line in normalize_text(text)]
        tokenizer = TextTokenizer.train(all_lines, pieces, context_length=1).tokenizer
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for before, piece in _pieces(tokenizer, all_lines):
            for length in range(ORDER):
                counts[tuple(before[ORDER - 1 - length :])][piece] += 1
        return cls(tokenizer.to_str(), dict(counts), tokenizer.get_vocab_size() + 1)

    def perplexity(self, text: str) -> float:
        """Return the perplexity over pieces and line ends; infinite for an empty text."""
        logs = [
            math.log10(self.probability(*context_and_piece))
            for context_and_piece in _pieces(self._tokenizer, normalize_text(text))
        ]
        return 10 ** (-sum(logs) / len(logs)) if logs else math.inf

    def probability(self, before: Sequence[int], piece: int) -> float:
        """Return p(piece | before), interpolated over all context lengths."""
        probability = 1 / self.vocabulary
        for length in range(len(before) + 1):
            run = tuple(before[len(before) - length :])
            after = self.counts.get(run)
            if after is None:
                break
            kinds = len(after)
            # Witten-Bell: (count + types * lower-order p) / (total + types).
            probability = (after[piece] + kinds * probability) / (self._totals[run] + kinds)
        return probability

    @cached_property
    def _totals(self) -> dict[tuple[int, ...], int]:
        return {run: after.total() for run, after in self.counts.items()}

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer)
        tokenizer.encode_special_tokens = True  # as when it was fitted
        return tokenizer


def _pieces(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> Iterator[tuple[list[int], int]]:
    """Yield every piece and line end with its context of order - 1 pieces."""
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        sequence = [START] * (ORDER - 1) + encoding.ids + [END]
        for index in range(ORDER - 1, len(sequence)):
            yield sequence[index - ORDER + 1 : index], sequence[index]


def normalize_text(text: str) -> list[str]:
    """Normalize for scoring only: lower case, digits to 0, punctuation to commas (CCNet); returns lines."""
    folded = re.sub(r"\d", "0", unicodedata.normalize("NFKC", text.lower()))
    plain = "".join("," if unicodedata.category(character)[0] == "P" else character for character in folded)
    return lines(plain)
