"""Duplicate detection: balance, thresholds and ranks against plain loops; and no function on two sides."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from polymodal.corpora.function_posts import labelled_links, parts_of_function, two_posts
from polymodal.evaluation.duplicates import (
    LabelledPairs,
    balanced,
    best_threshold,
    bm25_scores,
    duplicate_ranks,
    length_scores,
)
from polymodal.modalities.thread import Thread


def test_negatives_are_a_third_each_of_the_duplicates():
    labels = np.array([0] * 9 + [1] * 20 + [2] * 2 + [3] * 7)
    posts = [Thread(str(n)) for n in range(len(labels))]
    kept = balanced(LabelledPairs(posts, posts, labels))
    assert np.bincount(kept.labels).tolist() == [9, 3, 2, 3]
    assert all(labels[int(post.question_text)] == label for post, label in zip(kept.first, kept.labels, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_has_the_highest_macro_f1(seed):
    rng = np.random.default_rng(seed)
    scores, duplicate = rng.integers(0, 6, 25) / 2, rng.integers(0, 2, 25)

    def macro(threshold: float) -> float:
        return float(f1_score(duplicate, scores >= threshold, average="macro", labels=[0, 1], zero_division=0))

    assert macro(best_threshold(scores, duplicate)) == pytest.approx(max(map(macro, scores)))


def test_the_query_is_no_candidate_and_ties_come_before():
    similarity = np.array([[1.0, 0.5, 0.5, 0.2], [0.1, 1.0, np.nan, 0.3], [0.9, np.nan, 1.0, 0.1]])
    relevant = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 0]], dtype=bool)
    # Query 0: post 2 is as similar as its duplicate 1. Query 1: NaN comes before. Query 2: its duplicate has NaN.
    assert duplicate_ranks(similarity, np.array([0, 1, 2]), relevant).tolist() == [2, 2, 3]


def test_length_says_nothing_of_equal_lengths():
    pairs = LabelledPairs([Thread("ab", "c")] * 2, [Thread("xyz"), Thread("a" * 30)], np.array([0, 3]))
    assert length_scores(pairs)[0] == 0 > length_scores(pairs)[1]


CODE = "def add(x, y=(1,\n        2)):  # sum\n    total = x\n    total += y\n    return total"


def test_parts_of_a_function():
    docstring = "Add two numbers.\n\nThe rest has at least five words.\n\n>>> add(1, 2)\n3\n\nMore."
    summary, usage, rest, body = parts_of_function(CODE, docstring)
    assert (summary, usage) == ("Add two numbers.", ">>> add(1, 2)\n3")
    assert rest.split() == ["The", "rest", "has", "at", "least", "five", "words.", "More."]
    assert body == "    total = x\n    total += y\n    return total"
    assert parts_of_function(CODE, "Add.")[1] == "def add(x, y=(1,\n        2)):  # sum"
    posts = [two_posts(summary, rest, CODE, np.random.default_rng(seed)) for seed in range(20)]
    forms = set()
    for both in posts:
        assert both is not None
        texts, codes = zip(*both, strict=True)
        assert sorted(texts) == sorted([summary, rest])
        assert CODE in ("\n".join(codes), "\n".join(codes[::-1]))  # all lines, in two parts
        forms.add((texts[0] == summary, CODE.startswith(codes[0])))
    assert len(forms) == 4  # which text and which part of the code is first is independent
    assert two_posts(summary, "Too short.", CODE, np.random.default_rng(0)) is None


def test_hard_negatives_are_of_other_functions():
    rows = [
        {"key": f"m{n // 2}.f{n}", "module": f"m{n // 2}", "package": f"p{n // 4}", "code": f"code {max(n, 1)}",
         "posts": ((f"word{n % 3} reads", "a"), (f"word{n % 3} writes {n}", "b")), "form": (True, False)}
        for n in range(8)
    ]  # fmt: skip
    links = labelled_links(rows)
    for number, row in enumerate(rows):
        of_label = {label: int(key.split("f")[1].removesuffix("#2")) for key, label in links[row["key"]]}
        assert of_label[0] == number
        assert (of_label[1] != number and of_label[1] % 3 == number % 3) or number < 2
        assert rows[of_label[3]]["package"] != row["package"]
        assert 2 not in of_label or rows[of_label[2]]["module"] == row["module"]
        assert {number, of_label.get(1), of_label.get(3)} != {0, 1}  # functions 0 and 1 have equal code
    assert 2 not in {label for _, label in links["m0.f0"]}


def test_the_form_of_both_posts_says_nothing():
    rows = [
        {"key": f"m{n // 8}.f{n}", "module": f"m{n // 8}", "package": f"p{n // 16}", "code": f"code {n}",
         "posts": ((f"word{n % 3} reads", "a"), (f"word{n % 3} writes {n}", "b")), "form": (n % 4 < 2, n % 2 == 0)}
        for n in range(32)
    ]  # fmt: skip
    for row, linked in zip(rows, labelled_links(rows).values(), strict=True):
        of_label = {label: rows[int(key.split("f")[1].removesuffix("#2"))] for key, label in linked}
        assert {*of_label} == {0, 1, 2, 3}
        assert {other["form"] for other in of_label.values()} == {row["form"]}


def test_bm25_is_relative_to_that_of_the_post_itself():
    long, short = Thread("one two three four five six"), Thread("seven eight")
    pairs = LabelledPairs([long, short, long, short, short], [long, short, short, long, Thread()], np.arange(5) % 2)
    assert bm25_scores(pairs) == pytest.approx([1, 1, 0, 0, 0])
