"""Composed posts about tasks: synonyms are of one concept alone, pairs are of their kinds, and form says nothing."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from polymodal.corpora.coding_posts import ACTIONS, MANNERS, OBJECTS, SPLITS, composed_thread, labelled_links

KINDS = (ACTIONS, OBJECTS, MANNERS)
TASKS = [*itertools.product(range(4), range(4), range(4))]


def test_synonyms_are_of_one_concept_and_splits_have_all_tasks():
    for side in range(2):
        words = [word for kind in KINDS for item in kind.items() for word in item[side].split()]
        assert len({*words}) == len(words) == 2 * sum(map(len, KINDS))
    assert sum(SPLITS.values()) == np.prod([len(kind) for kind in KINDS])


def test_all_parts_are_about_the_task_in_words_at_random():
    rng, seen = np.random.default_rng(0), Counter[str]()
    for _ in range(60):
        for number, part in enumerate(composed_thread((3, 5, 7), rng)):
            for kind, concept in zip(KINDS, (3, 5, 7), strict=True):
                words = [*kind.items()][concept][number % 2].split()
                (word,) = [word for word in words if word in part]
                seen[word] += 1
    expected = {
        word for kind, n in zip(KINDS, (3, 5, 7), strict=True) for w in [*kind.items()][n] for word in w.split()
    }
    assert {*seen} == expected
    assert min(seen.values()) > 10


def test_pairs_are_a_duplicate_and_a_negative_of_each_kind():
    rng = np.random.default_rng(0)
    posts = [[" ".join(composed_thread(task, rng)[:2]) for _ in range(2)] for task in TASKS]
    for number, linked in enumerate(labelled_links(TASKS, posts, rng)):
        of_label = {label: TASKS[other] for label, other in linked}
        task = TASKS[number]
        assert [label for label, _ in linked] == [0, 1, 2, 3]
        assert of_label[0] == task != of_label[1]
        assert of_label[2][1] == task[1]
        assert of_label[2] != task
        assert not any(a == b for a, b in zip(of_label[3], task, strict=True))
