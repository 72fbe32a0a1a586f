"""BM25 against its formula, the words of code, and hard negatives that leave the excluded out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polymodal.corpora.bm25 import BM25, lexical_tokens

TEXTS = ["the cat sat", "a cat and a cat", "readLines_of the fileName", "", "dog"]


def formula(query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Robertson's BM25 with Lucene's IDF, term by term."""
    documents = [lexical_tokens(text) for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for word in lexical_tokens(query):
            having = sum(word in other for other in documents)
            if not having:
                continue
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = words.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["cat", "the cat", "read the file", "dog dog", "unicorn", ""])
def test_scores_are_those_of_the_formula(query):
    assert BM25(TEXTS).scores(query) == pytest.approx(formula(query), abs=1e-5)


def test_identifiers_are_words():
    assert lexical_tokens("readLines_of(HTMLParser, x2) größe") == [
        "read", "lines", "of", "html", "parser", "x", "2", "größe",
    ]  # fmt: skip


def test_the_best_are_first_without_the_excluded_and_those_that_share_no_word():
    index = BM25(TEXTS)
    assert index.top("a cat", 3).tolist() == [1, 0]
    assert index.top("a cat", 3, excluded=[1]).tolist() == [0]
    assert BM25(["", " "]).top("cat", 2).tolist() == []
    assert np.array_equal(BM25([""]).scores("cat"), [0.0])
