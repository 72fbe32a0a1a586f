"""Classification of images, clips, sounds or point clouds by prompts for the classes, and by a linear probe."""

from __future__ import annotations

from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.classification import balanced_accuracy, linear_probe, zero_shot_scores
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import ITEMS, Task, TaskInputs
from polymodal.evaluation.zero_shot import class_vectors, has_prompts, labels_of, zero_shot_protocol
from polymodal.modalities import Category


def label_scores(inputs: TaskInputs) -> list[Score]:
    """Zero-shot by prompts where there are any, and a linear probe where there is a training and a validation split."""
    corpus, label = inputs.corpus, inputs.corpus.label
    assert label is not None
    items = {split: inputs.item_vectors(split) for split in inputs.test_splits}
    labels = {split: labels_of(corpus, label, of_split) for split, of_split in items.items()}
    scores = []
    if has_prompts(inputs):
        _, classes = class_vectors(inputs, label)
        for split, of_split in items.items():
            scores += zero_shot_scores(f"{split}/zero_shot_{label}", of_split.vectors, labels[split], classes)
    if all(len(corpus.splits.get(part, ())) for part in ("train", "validation")):
        train, tuning = (inputs.item_vectors(part) for part in ("train", "validation"))
        probe = linear_probe(
            (train.vectors.numpy(), labels_of(corpus, label, train)),
            (tuning.vectors.numpy(), labels_of(corpus, label, tuning)),
        )
        for split, of_split in items.items():
            predicted = probe.predict(of_split.vectors.numpy())
            scores.append(balanced_accuracy(f"{split}/linear_probe_{label}/accuracy", predicted, labels[split]))
    return scores


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
