"""Retrieval by captions of frequent and of rare concepts, languages and other tags: head against tail.

The tags are the categorical columns of the corpus and the languages of its captions; frequencies are those of the
corpus's training split. Captions of concepts and other tags are those in the main language, if there is one.
"""

from __future__ import annotations

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.embeddings import PairedTest, main_language
from polymodal.evaluation.head_tail import LANGUAGE, MIN_VALUES, is_long_tailed, tier_scores
from polymodal.evaluation.retrieval import chance_recall
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import WITH_TEXT, Task, TaskInputs
from polymodal.modalities import Category

KS = (1, 10)


def head_tail_scores(inputs: TaskInputs) -> list[Score]:
    """Recall at 1 and 10 of text-to-item retrieval, for head and tail of each long-tailed tag, on every test split."""
    corpus, main, scores = inputs.corpus, main_language(inputs.corpus), []
    tags = {name: counts for name, counts in inputs.tag_frequencies.items() if is_long_tailed(counts)}
    for split in inputs.test_splits:
        items = inputs.item_vectors(split)
        spoken = {caption.language for example in items.examples for caption in example["text"]}
        of_language = main if main in spoken else None
        wanted = {of_language} | (spoken if LANGUAGE in tags else set())
        tests = {one: PairedTest.of(inputs.method, inputs.processor, items, one) for one in sorted(wanted, key=str)}
        for name, counts in tags.items():
            if name == LANGUAGE:
                parts = [(tests[one], [one] * len(tests[one].owner)) for one in sorted(spoken)]
            else:
                test = tests[of_language]
                parts = [(test, _tags_of(corpus, items.rows[test.owner], name))]
            scores += _scores(f"{split}/head_tail/{name}", parts, counts, len(items.rows))
    return scores


def _tags_of(corpus: Corpus, rows: np.ndarray, column: str) -> list[str]:
    modality = corpus.columns[column]
    assert isinstance(modality, Category)
    return [
        "" if value is None else modality.names[modality.decode(value)] for value in corpus.raw_values(rows, column)
    ]


def _scores(name: str, parts: list[tuple[PairedTest, list[str]]], counts: dict[str, int], items: int) -> list[Score]:
    """parts: queries with the value of the tag of each, empty for none."""
    ranked = [(*test.text_ranks(), test.owner, tags) for test, tags in parts]
    best_ranks = np.concatenate([one[0] for one in ranked])
    relevant = np.array([len(right) for one in ranked for right in one[1]])
    unit = np.concatenate([one[2] for one in ranked])
    tags = [tag for one in ranked for tag in one[3]]
    kept = np.array([tag != "" for tag in tags], dtype=bool)
    tagged, scores = [tag for tag in tags if tag], []
    for k in KS if tagged else ():
        hits = (best_ranks[kept] <= k).astype(float)
        chance = chance_recall(relevant[kept], items, k)
        scores += tier_scores(name, f"R@{k}", hits, tagged, unit[kept], items, counts, chance)
    return scores


def has_long_tail(inputs: TaskInputs) -> bool:
    """Whether a tag of many values has a long tail."""
    return any(len(counts) >= MIN_VALUES and is_long_tailed(counts) for counts in inputs.tag_frequencies.values())


task = Task(
    capability=CanEmbed,
    requires=WITH_TEXT,
    condition=has_long_tail,
    order=12,
    score=head_tail_scores,
    metrics={
        "tail_minus_head/R@*": MetricKind(is_fraction=False),
        "disparity/R@*": MetricKind(higher_is_better=False, is_fraction=False),
        "R@*": MetricKind(),
    },
    headline=("head_tail/*/tail/R@10", "head_tail/*/tail_minus_head/R@10"),
    forward_methods=("embed",),
    protocol=lambda inputs: {
        "tiers": "third of the values with most training examples (head), and with fewest (tail)",
        "averaged_over": "values of the tag (macro-average)",
        "k": list(KS),
    },
)
