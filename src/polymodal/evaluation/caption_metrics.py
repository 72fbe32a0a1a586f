"""BLEU and CIDEr-D of captions with several references each, as pycocoevalcap computes them, without Java.

The values of both equal those of pycocoevalcap 1.2 on the same tokens. `caption_tokens` follows its tokenizer (Stanford
CoreNLP's for the Penn Treebank, in lower case and without punctuation) in what captions contain; it has no rules for
currencies and rare abbreviations.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MAX_N = 4  # longest n-grams
LENGTH_SIGMA = 6.0  # of CIDEr-D's Gaussian penalty on the difference of lengths
CIDER_SCALE = 10.0
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's, against division by zero

_PUNCTUATION = {*"'`.?!,:;-\"", "''", "``", "--", "..."}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "—": "--", "–": "--"})
_TWO_WORDS = {"cannot": 3, "gonna": 3, "wanna": 3, "gotta": 3, "gimme": 3, "lemme": 3}  # letters of the first
_TOKEN = re.compile(
    r"""
    https?://\S+ | [\w.+-]+@[\w-]+\.[\w.]+          # addresses
    | (?:[a-z]\.){2,}                               # u.s., p.m.
    | \b(?:mr|mrs|ms|dr|st|vs|etc|jr|sr|mt|no|prof)\.  # abbreviations keep their period
    | \b[od]'\w+                                   # o'clock
    | '(?:s|m|d|ll|re|ve)\b | n't\b                 # clitics
    | '(?=tis\b|twas\b)t
    | \d+(?:[.,:/]\d+)*(?![\w-])
    | @\w+
    | [^\W_]+?(?=n't\b)                             # what stands before n't
    | \w+(?:[-/]\w+)*                               # words, with hyphens and slashes inside
    | \.{2,} | -{2,} | [^\w\s]
    """,
    re.VERBOSE,
)


def caption_tokens(caption: str) -> list[str]:
    """Split a caption into words in lower case, without punctuation."""
    tokens: list[str] = []
    for token in _TOKEN.findall(caption.translate(_TYPOGRAPHIC).lower()):
        if token in _TWO_WORDS:
            tokens += [token[: _TWO_WORDS[token]], token[_TWO_WORDS[token] :]]
        elif token.strip(".-") and token not in _PUNCTUATION:
            tokens.append(_BRACKETS.get(token, token))
    return tokens


def _ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, MAX_N + 1) for start in range(len(tokens) - n + 1)
    )


def bleu_statistics(caption: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " statistics"]:
    """Return the matched n-grams and the n-grams of a caption for n = 1 to 4, and both lengths; they add up.

    The length of the references is that of the closest one, of two equally close the shorter.
    """
    counts, allowed = _ngrams(caption), Counter[tuple[str, ...]]()
    for reference in references:
        allowed |= _ngrams(reference)
    matched = np.zeros(MAX_N)
    for ngram, count in (counts & allowed).items():
        matched[len(ngram) - 1] += count
    possible = [max(len(caption) - n + 1, 0) for n in range(1, MAX_N + 1)]
    closest = min((abs(len(one) - len(caption)), len(one)) for one in references)[1]
    return np.array([*matched, *possible, len(caption), closest])


def bleu(statistics: Float[np.ndarray, "*corpora statistics"], n: int) -> Float[np.ndarray, "*corpora"]:
    """Return BLEU-n of sums of `bleu_statistics` (Papineni et al. 2002)."""
    matched, possible = statistics[..., :n], statistics[..., MAX_N : MAX_N + n]
    precision = np.exp(np.log((matched + _TINY) / (possible + _SMALL)).mean(-1))
    ratio = (statistics[..., -2] + _TINY) / (statistics[..., -1] + _SMALL)
    return np.asarray(precision * np.exp(np.minimum(1 - 1 / ratio, 0.0)))


def cider(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> Float[np.ndarray, " images"]:
    """Return CIDEr-D of each image's caption (Vedantam et al. 2015), with the document frequencies of the references.

    captions, references: tokens. Values are 10 times the mean similarity of tf-idf vectors for n = 1 to 4.
    """
    reference_ngrams = [[_ngrams(one) for one in of_image] for of_image in references]
    documents = Counter(ngram for of_image in reference_ngrams for ngram in {g for one in of_image for g in one})
    log_images = math.log(len(captions))

    def weighted(counts: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {ngram: n * (log_images - math.log(max(1, documents[ngram]))) for ngram, n in counts.items()}

    scores = []
    for caption, of_image, ngrams in zip(captions, references, reference_ngrams, strict=True):
        vector = weighted(_ngrams(caption))
        similar = [
            _clipped_cosine(vector, weighted(one)) * _length_penalty(len(caption), len(tokens))
            for one, tokens in zip(ngrams, of_image, strict=True)
        ]
        scores.append(CIDER_SCALE * float(np.mean(similar)))
    return np.array(scores)


def _length_penalty(length: int, other: int) -> float:
    # pycocoevalcap counts bigrams, which differs from words only in texts without any.
    return math.exp(-((max(length - 1, 0) - max(other - 1, 0)) ** 2) / (2 * LENGTH_SIGMA**2))


def _clipped_cosine(vector: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    """The mean over n of the cosine of two vectors, with the first clipped by the second (equation 5 of the paper)."""
    products, squares, other_squares = np.zeros(MAX_N), np.zeros(MAX_N), np.zeros(MAX_N)
    for ngram, value in vector.items():
        products[len(ngram) - 1] += min(value, other.get(ngram, 0.0)) * other.get(ngram, 0.0)
        squares[len(ngram) - 1] += value**2
    for ngram, value in other.items():
        other_squares[len(ngram) - 1] += value**2
    norms = np.sqrt(squares) * np.sqrt(other_squares)
    return float(np.divide(products, norms, out=np.zeros(MAX_N), where=norms > 0).mean())
