"""A language model of counted n-grams: how much a text surprises one who has read texts of a language.

Pieces of words, counted in runs of up to five, with the interpolation of Witten and Bell (1991): a run that was seen
with many different pieces after it expects a new one. CCNet and OBELICS do this with KenLM, which must be compiled.
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
    """counts: for each run of at most four pieces, the pieces that came after it; the empty run has all."""

    tokenizer: str
    counts: dict[tuple[int, ...], Counter[int]]
    vocabulary: int

    @classmethod
    def fit(cls, texts: Sequence[str], pieces: int = PIECES) -> NGramModel:
        """pieces: entries of the vocabulary that is learned on the texts."""
        every = [line for text in texts for line in normalize_text(text)]
        tokenizer = TextTokenizer.train(every, pieces, context_length=1).tokenizer
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for before, piece in _pieces(tokenizer, every):
            for length in range(ORDER):
                counts[tuple(before[ORDER - 1 - length :])][piece] += 1
        return cls(tokenizer.to_str(), dict(counts), tokenizer.get_vocab_size() + 1)

    def perplexity(self, text: str) -> float:
        """10 to the mean of -log10 p over the pieces and the end of each line; infinite for a text without any."""
        logs = [math.log10(self.probability(*one)) for one in _pieces(self._tokenizer, normalize_text(text))]
        return 10 ** (-sum(logs) / len(logs)) if logs else math.inf

    def probability(self, before: Sequence[int], piece: int) -> float:
        """Of a piece after others: the longer the run that was seen, the more it counts."""
        found = 1 / self.vocabulary
        for length in range(len(before) + 1):
            run = tuple(before[len(before) - length :])
            after = self.counts.get(run)
            if after is None:
                break
            kinds = len(after)
            found = (after[piece] + kinds * found) / (self._totals[run] + kinds)
        return found

    @cached_property
    def _totals(self) -> dict[tuple[int, ...], int]:
        return {run: after.total() for run, after in self.counts.items()}

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.tokenizer)


def _pieces(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> Iterator[tuple[list[int], int]]:
    """Every piece of each line and the line's end, with the pieces before it that count."""
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        sequence = [START] * (ORDER - 1) + encoding.ids + [END]
        for place in range(ORDER - 1, len(sequence)):
            yield sequence[place - ORDER + 1 : place], sequence[place]


def normalize_text(text: str) -> list[str]:
    """Lines in which all digits are 0 and all marks of punctuation one, as only the decision needs them (CCNet)."""
    folded = re.sub(r"\d", "0", unicodedata.normalize("NFKC", text.lower()))
    plain = "".join("," if unicodedata.category(character)[0] == "P" else character for character in folded)
    return lines(plain)
