"""Classification of images, clips, sounds or point clouds by prompts for the classes, and by a linear probe."""

from __future__ import annotations

import numpy as np
import torch

from polymodal.data.loader import Reader
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.classification import balanced_accuracy, linear_probe, zero_shot_scores
from polymodal.evaluation.embeddings import ItemVectors
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import ITEMS, Task, TaskInputs
from polymodal.evaluation.zero_shot import class_vectors, has_prompts, labelled, zero_shot_protocol
from polymodal.modalities import Category


def label_scores(inputs: TaskInputs) -> list[Score]:
    """Zero-shot by prompts where there are any, and a linear probe where there is a training and a validation split."""
    corpus, label = inputs.corpus, inputs.corpus.label
    assert label is not None
    tests = {split: labelled(corpus, label, inputs.item_vectors(split)) for split in inputs.test_splits}
    tests = {split: part for split, part in tests.items() if len(part[1])}
    scores = []
    if has_prompts(inputs):
        _, classes = class_vectors(inputs, label)
        for split, (vectors, labels) in tests.items():
            scores += zero_shot_scores(f"{split}/zero_shot_{label}", vectors, labels, classes)
    if all(len(corpus.splits.get(part, ())) for part in ("train", "validation")):
        train, tuning = (_labelled_part(inputs, label, part) for part in ("train", "validation"))
        if not len(train[1]) or not len(tuning[1]):
            return scores
        probe = linear_probe((train[0].numpy(), train[1]), (tuning[0].numpy(), tuning[1]))
        for split, (vectors, labels) in tests.items():
            predicted = probe.predict(vectors.numpy())
            scores.append(balanced_accuracy(f"{split}/linear_probe_{label}/accuracy", predicted, labels))
    return scores


def _labelled_part(inputs: TaskInputs, label: str, split: str) -> tuple[torch.Tensor, np.ndarray]:
    """The vectors and classes of the labelled items of a split; items without a label are not encoded."""
    corpus, rows = inputs.corpus, inputs.corpus.rows(split)
    some = rows[corpus.has(label)[rows]]
    if len(some) == len(rows) or not len(some):
        return labelled(corpus, label, inputs.item_vectors(split))
    reader = Reader(corpus.with_splits({**corpus.splits, split: some}), inputs.reader.processor)
    assert inputs.item is not None
    return labelled(corpus, label, ItemVectors.of(inputs.method, inputs.processor, reader, split, inputs.item))


def has_classes(inputs: TaskInputs) -> bool:
    """Whether the corpus has a label with classes, and the method takes texts."""
    label = inputs.corpus.label
    takes_text = "text" in getattr(inputs.processor, "columns", ("text",))
    return takes_text and label is not None and isinstance(inputs.corpus.columns.get(label), Category)


task = Task(
    capability=CanEmbed,
    requires=tuple((modality,) for modality in ITEMS.values()),
    condition=has_classes,
    order=11,
    score=label_scores,
    metrics={"accuracy": MetricKind(), "top-*": MetricKind()},
    headline=("zero_shot_*/accuracy", "zero_shot_*/top-1", "zero_shot_*/top-5", "linear_probe_*/accuracy"),
    forward_methods=("embed",),
    protocol=zero_shot_protocol,
    hint="evaluate RUN --template 'a photo of a {}.'",
)
