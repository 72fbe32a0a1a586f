"""Duplicate detection: is a post a duplicate of another, similar to it or different, and does an index find it?

Macro F1 of duplicates against all other pairs, with as many duplicates as negatives, a third of each kind (MQDD, Pasek
et al. 2022). In an index of all posts of the split, a post is the query for its duplicates. BM25, and the lengths of
both posts, are baselines; their thresholds, and that of the cosine of two vectors, are fitted on training pairs.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.corpora.bm25 import BM25
from polymodal.data.columns.thread import ThreadExample
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.classification import macro_f1, predicted_classes
from polymodal.evaluation.duplicates import (
    LabelledPairs,
    accuracy_by_kind,
    balanced,
    best_threshold,
    bm25_scores,
    duplicate_ranks,
    labelled_pairs,
    length_scores,
)
from polymodal.evaluation.panels import EXAMPLES, MAX_CANDIDATES, Panels, retrieval_panels, value_panel
from polymodal.evaluation.retrieval import METRICS, retrieval_scores
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Threads
from polymodal.modalities.thread import DUPLICATE
from polymodal.training.run import answers, embed
from polymodal.types import Batch

MAX_TRAINING_POSTS = 4000  # whose pairs thresholds are fitted on
MAX_QUERIES = 2000  # of a split


@runtime_checkable
class DetectsDuplicates(Protocol):
    """Capability: vectors of posts (`thread`), and logits that two posts (`thread`, `second`) are duplicates.

    learned_duplicates: False for a method whose logits were not trained, which are not scored then.
    """

    def embed(self, batch: Batch) -> dict[str, Tensor]: ...

    def duplicate_logits(self, batch: Batch) -> Tensor: ...

    def learned_duplicates(self) -> bool: ...


def pair_logits(method: Any, processor: Processor, pairs: LabelledPairs) -> np.ndarray:
    """Return the method's logits of all pairs, in the order of first and second post, and then in the other order."""
    sides = (pairs.first, pairs.second), (pairs.second, pairs.first)
    each = [
        answers(method, processor, "duplicate_logits", {"thread": first, "second": second}) for first, second in sides
    ]
    return np.stack([torch.cat(parts).float().numpy() for parts in each])


def cosines(method: nn.Module, processor: Processor, pairs: LabelledPairs) -> np.ndarray:
    """Return the cosine of the vectors of both posts."""
    first, second = (embed(method, processor, 256, thread=side)["thread"] for side in (pairs.first, pairs.second))
    return (first * second).sum(1).float().numpy()


def pair_scores(
    method: Any, processor: Processor, name: str, pairs: LabelledPairs, training: LabelledPairs
) -> list[Score]:
    """Return macro F1 of the method, by the kinds of pairs, by the cosine, and of the baselines."""
    scores = []
    if method.learned_duplicates():
        logits, swapped = pair_logits(method, processor, pairs)
        predicted = predicted_classes(logits)
        scores.append(macro_f1(f"{name}/macro_F1", predicted, pairs.duplicate))
        scores += accuracy_by_kind(name, predicted == pairs.duplicate, pairs.labels)
        agree = (predicted == predicted_classes(swapped)).astype(float)
        scores.append(Score(f"{name}/swap_agreement", agree))
    if not 0 < training.duplicate.sum() < len(training):
        return scores
    baselines = {
        "cosine": lambda some: cosines(method, processor, some),
        "bm25": bm25_scores,
        "length": length_scores,
    }
    for baseline, score in baselines.items():
        values = score(pairs)
        threshold = best_threshold(score(training), training.duplicate)
        predicted = np.where(np.isnan(values), -1, values >= threshold)
        scores.append(macro_f1(f"{name}/{baseline}/macro_F1", predicted, pairs.duplicate))
    return scores


def index_scores(method: nn.Module, processor: Processor, name: str, examples: list[ThreadExample]) -> list[Score]:
    """Return how well an index of all posts finds the duplicates of those that have some: of vectors, and BM25."""
    clusters = np.array([example.cluster for example in examples])
    queries = [n for n, one in enumerate(examples) if any(link.label == DUPLICATE for link in one.linked)]
    queries = [n for n in queries if (clusters == clusters[n]).sum() > 1][:MAX_QUERIES]
    if not queries:
        return []
    numbers = np.array(queries)
    relevant = clusters[numbers, None] == clusters
    vectors = embed(method, processor, 256, thread=examples)["thread"]
    words = [" ".join(example.thread.post) for example in examples]
    index = BM25(words)
    by_words = np.stack([index.scores(words[number]) for number in queries])
    duplicates = [np.flatnonzero(row) for row in relevant]
    others = [both[both != number] for both, number in zip(duplicates, queries, strict=True)]
    scores = []
    for end, similarity in (("", (vectors[numbers] @ vectors.T).float().numpy()), ("/bm25", by_words)):
        ranks = duplicate_ranks(similarity, numbers, relevant)
        scores += retrieval_scores(f"{name}{end}", ranks, others, len(examples) - 1, clusters[numbers])
    return scores


def detection_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Return all scores of a split; none where it has no duplicates, those of the index alone without negatives."""
    examples, name = _examples(reader.read_split(split)[1]), f"{split}/duplicates"
    pairs, scores = balanced(labelled_pairs(examples)), []
    if 0 < pairs.duplicate.sum() < len(pairs):
        training: list[ThreadExample] = []
        if "train" in reader.corpus.splits:
            training = _examples(reader.read_split("train", MAX_TRAINING_POSTS)[1])
        scores = pair_scores(method, processor, name, pairs, balanced(labelled_pairs(training)))
    return scores + index_scores(method, processor, name, examples)


def _examples(examples: list[dict[str, Any]]) -> list[ThreadExample]:
    return [example["thread"] for example in examples]


def _scores(inputs: TaskInputs) -> list[Score]:
    return inputs.over_test_splits(detection_scores)


def _validate(inputs: TaskInputs) -> list[Score]:
    return detection_scores(inputs.method, inputs.processor, inputs.reader, "validation")


def plot(inputs: TaskInputs) -> Panels:
    """Posts with the most similar posts of the index; green: duplicates."""
    rows, test = inputs.test_examples(MAX_CANDIDATES)
    examples = _examples(test)
    clusters = np.array([example.cluster for example in examples])
    twice = np.flatnonzero([(clusters == one).sum() > 1 for one in clusters])
    numbers = twice if len(twice) else np.arange(len(rows))
    chosen = numbers[np.linspace(0, len(numbers) - 1, min(EXAMPLES, len(numbers))).round().astype(int)].tolist()
    vectors = embed(inputs.method, inputs.processor, 256, thread=examples)["thread"]
    similarity = vectors[chosen] @ vectors.T
    similarity[range(len(chosen)), chosen] = -torch.inf  # the query itself
    column = inputs.corpus.column_with(Threads)
    return retrieval_panels(
        [value_panel(inputs.corpus, int(rows[number]), column, "post") for number in chosen],
        similarity,
        [np.flatnonzero((clusters == clusters[number]) & (np.arange(len(rows)) != number)) for number in chosen],
        lambda number, title, right: value_panel(inputs.corpus, int(rows[number]), column, title, right),
        f"The most similar of {len(rows)} posts; green: duplicates",
    )


task = Task(
    capability=DetectsDuplicates,
    requires=((Threads,),),
    order=92,
    score=_scores,
    validate=_validate,
    plot=plot,
    metrics=METRICS | {"macro_F1": MetricKind(), "accuracy": MetricKind(), "swap_agreement": MetricKind()},
    headline=("duplicates/macro_F1", "duplicates/R@10", "duplicates/bm25/macro_F1", "duplicates/bm25/R@10"),
    forward_methods=("embed", "duplicate_logits"),
    hint="index RUN",
)
