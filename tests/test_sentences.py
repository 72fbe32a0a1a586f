"""Sentences of documents: extraction, filters, and the pool that they are kept in."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest

from polymodal.curation.merged_texts import mine_tags
from polymodal.curation.perplexity_filter import cross_fitted_perplexities, in_interval
from polymodal.curation.sentences import (
    SentencePool,
    SentenceRules,
    UnigramModel,
    caption_complexity,
    count_words,
    first_of_each,
    has_action,
    split_sentences,
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One car. Two cars!  Three?", ["One car.", "Two cars!", "Three?"]),
        (
            "Dr. Who met J. Smith at 3.5 p.m. in May. It rained.",
            ["Dr. Who met J. Smith at 3.5 p.m. in May.", "It rained."],
        ),
        ('He said "Stop." Then he left', ['He said "Stop."', "Then he left"]),
        ("first line\n\nsecond  line", ["first line", "second line"]),
        ("这是狗。那是猫！好", ["这是狗。", "那是猫！", "好"]),
        ("هل هذا كلب؟ نعم", ["هل هذا كلب؟", "نعم"]),
        ("e.g. version 2.0 is out... and more", ["e.g. version 2.0 is out... and more"]),
        ("I said no. Then he left. See no. 5 of it.", ["I said no.", "Then he left.", "See no. 5 of it."]),
        ("  \n", []),
    ],
)
def test_sentences_are_extracted(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_rules_of_a_sentence() -> None:
    rules = SentenceRules(min_complexity=1, require_action=True)
    reasons = {
        "a cat 😀 sits here": "emoji",
        "read it on example.com now": "url",
        "two words": "min_words",
        "word " * 82: "max_words",
        "and the or": "min_complexity",
        "the red cat": "require_action",
        "a cat is on a mat": None,
    }
    assert {text: rules.why_not(text) for text in reasons} == reasons
    assert SentenceRules().why_not("word " * 81) is None
    assert count_words("这是狗 dog") == 4
    assert caption_complexity("dog and cat") == 0
    assert caption_complexity("dog on mat") == 1
    assert caption_complexity("a red dog on a mat") == 2
    assert has_action("a dog running") and not has_action("a red dog")  # noqa: PT018


def test_the_entropy_is_a_sum_over_words_with_the_probabilities_of_the_corpus() -> None:
    sentences = ["the cat sat", "the dog sat down", "a bird"]
    counts = Counter(word for sentence in sentences for word in sentence.split())
    expected = 0.0
    for word in ["the", "cat", "the"]:
        p = counts[word] / 9
        expected -= p * math.log(p)
    model = UnigramModel.fit(sentences)
    assert model.entropy("The cat, the zebra!") == pytest.approx(expected)
    assert model.entropy("the cat sat on") > model.entropy("the cat")  # not the entropy of its own histogram


def test_repeated_sentences_and_those_of_evaluations_go() -> None:
    assert first_of_each(["A cat.", "a  cat!", "a dog", "A cat 2", "A cat 3"], excluded=["a DOG."]) == [0, 3, 4]


def test_a_long_line_is_split_in_linear_time() -> None:
    start = time.perf_counter()
    assert len(split_sentences("This is one of its sentences. " * 20_000)) == 20_000
    assert time.perf_counter() - start < 10  # minutes, where every full stop reads all of the line before it


def test_characters_of_chinese_are_words_of_the_unigram_model() -> None:
    sentences = [f"第{number}只红色的猫坐在垫子上面。" for number in range(50)]
    model = UnigramModel.fit(sentences)
    counts = Counter("".join(sentences).replace("。", ""))
    values = [counts[one] / counts.total() for one in "红色的猫"]
    assert model.entropy("红色的猫！") == pytest.approx(-sum(p * math.log(p) for p in values), rel=0.2)
    assert min(map(model.entropy, sentences)) > 0.3  # the paper's minimum


def test_joiners_and_vowel_signs_belong_to_words() -> None:
    sinhala = "ශ\u0dca\u200dර\u0dd3 ලංකාව ලස්සන රටකි"
    assert SentenceRules().why_not(sinhala) is None
    hindi = ["किताब मेज पर है", "किताबें मेज पर हैं"]
    assert first_of_each([*hindi, "किताब मेज पर है।"]) == [0, 1]
    assert "किताब" in mine_tags([*hindi, "वह लड़की किताब पढ़ती है"], 100, stop_words=True)


def test_a_pool_counts_what_it_leaves_out() -> None:
    pool = SentencePool(["one cat sits", "two", "three dogs run", "😀 four five"])
    pool.apply(SentenceRules())
    pool.keep("entropy", np.array([False, True]))
    assert pool.texts == ["three dogs run"]
    assert pool.rejected == {"min_words": 1, "emoji": 1, "entropy": 1}


@pytest.mark.parametrize("count", [1, 2, 9, 10, 41, 100])
def test_as_many_values_go_above_as_below(count: int) -> None:
    values = np.random.default_rng(0).permutation(count).astype(float)
    kept = np.sort(values[in_interval(values, 0, 0, quantile=0.05)])
    gone = int(0.05 * (count - 1))
    assert kept.tolist() == list(range(gone, count - gone))


def test_perplexities_are_kept_inside_an_interval_or_quantiles() -> None:
    values = np.array([10.0, 30, 50, 200, 201])
    assert in_interval(values, 30, 200).tolist() == [False, True, True, True, False]
    assert in_interval(values, 0, 1, quantile=0.25).tolist() == [False, True, True, True, False]
    good = [f"the {a} cat sat on the {b} mat" for a in ("red", "big", "old") for b in ("new", "wet", "dry")]
    scored = cross_fitted_perplexities([*good, "zqx vvk jjw qqp xxz"], pieces=300)
    assert scored[-1] > 2 * max(scored[:-1])
    assert len(cross_fitted_perplexities(["alone"])) == 1
