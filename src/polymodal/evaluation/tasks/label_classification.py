"""Classification of a label, also with missing cells of a table (protocols of TIP, Du et al. 2024, section 4.3).

Cells are masked in training, validation and test rows alike before a linear probe is fitted on frozen features; a
method that classifies by itself was trained already, so that for it only test rows lose cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polymodal.data.loader import Reader
from polymodal.evaluation.classification import (
    area_under_curve,
    balanced_accuracy,
    confusion_matrix,
    linear_probe,
    macro_f1,
    predicted_classes,
)
from polymodal.evaluation.missing_modalities import (
    PROTOCOLS,
    RATES,
    Labelled,
    columns_by_importance,
    columns_of,
    missing_cells,
)
from polymodal.evaluation.panels import EXAMPLES, Panels, clipped, matrix_panel, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Category, Image, Video
from polymodal.training.run import answers
from polymodal.types import Batch, Example

MAX_PLOT_TRAIN = 1000  # examples that the linear probe of a plot is fitted on
MAX_PLOT_TEST = 1000  # examples of the confusion matrix of a plot
MAX_CONFUSED = 5  # classes whose confusion matrix is among the scores; larger ones are drawn alone


@runtime_checkable
class CanClassify(Protocol):
    """Capability: logits of the classes of the corpus's label."""

    def classify(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class HasFeatures(Protocol):
    """Capability: vectors of an example of several modalities, one or more, each for a linear probe of its own."""

    def features(self, batch: Batch) -> dict[str, Tensor]: ...


def classification_scores(inputs: TaskInputs) -> list[Score]:
    """By linear probes of the method's features, their probabilities averaged, and by its own classes if it has any.

    With a table among the columns, also for every protocol and rate of missing cells, and over all rates: the area
    under the curve of the metric against the rate, divided by the largest rate.
    """
    label, corpus, reader = inputs.corpus.label, inputs.corpus, inputs.reader
    assert label is not None
    parts = {split: Labelled.of(reader, split, label) for split in corpus.splits}
    parts = {split: part for split, part in parts.items() if len(part.labels)}
    with_table = "train" in parts and "table" in parts["train"].examples[0]
    important = columns_by_importance(parts["train"]) if with_table else []
    scores = _scores(inputs, parts, label, "")
    for protocol in PROTOCOLS if with_table else ():
        curves: dict[str, list[Score]] = {score.name: [score] for score in scores}
        for rate in RATES:
            rng = [np.random.default_rng(round(100 * rate)) for _ in parts]  # the same columns in all splits
            lacking = {
                split: part.without(missing_cells(protocol, rate, len(part.labels), important, one))
                for (split, part), one in zip(parts.items(), rng, strict=True)
            }
            condition = f"{protocol}_{round(100 * rate)}%/"
            for score in _scores(inputs, lacking, label, condition):
                scores.append(score)
                curves[score.name.replace(condition, "")].append(score)
        for name, curve in curves.items():
            if len(curve) > 1:
                task, _, metric = name.rpartition("/")
                scores.append(
                    Score(f"{task}/{protocol}/{metric.lower()}_vs_missing_rate", _area(curve), curve[0].chance)
                )
    return scores


def _area(curve: list[Score]) -> np.ndarray:
    return np.trapezoid([score.clusters for score in curve], (0.0, *RATES), axis=0) / RATES[-1]


def _scores(inputs: TaskInputs, parts: Mapping[str, Labelled], label: str, condition: str) -> list[Score]:
    tests = {split: part for split, part in parts.items() if split.startswith("test")}
    scores: list[Score] = []

    def add(split: str, task: str, likely: np.ndarray) -> None:
        labels = tests[split].labels
        predicted = predicted_classes(likely)
        scores.append(balanced_accuracy(f"{split}/{task}/{condition}accuracy", predicted, labels))
        scores.append(area_under_curve(f"{split}/{task}/{condition}AUC", likely, labels))
        if not condition and isinstance(inputs.method, CanClassify):
            scores.extend(by_class(f"{split}/{task}", predicted, labels, _names(inputs)))

    if isinstance(inputs.method, CanClassify):
        for split, part in tests.items():
            logits = answers(inputs.method, inputs.processor, "classify", columns_of(part.examples))
            add(split, f"classify_{label}", torch.cat(logits).numpy())
    if isinstance(inputs.method, HasFeatures) and {"train", "validation"} <= set(parts):
        vectors = {split: _features(inputs, part.examples) for split, part in parts.items()}
        classes = 1 + max(part.labels.max() for part in parts.values())
        likely = {split: np.zeros((len(part.labels), classes)) for split, part in tests.items()}
        for name in vectors["train"]:
            train, tuning = ((vectors[split][name], parts[split].labels) for split in ("train", "validation"))
            probe = linear_probe(train, tuning)
            for split in tests:
                probabilities = np.zeros_like(likely[split])
                probabilities[:, probe.classes_] = probe.predict_proba(vectors[split][name])
                likely[split] += probabilities
                if not condition:
                    add(split, f"linear_probe_{label}/{name}", probabilities)
        for split in tests:
            add(split, f"linear_probe_{label}", likely[split])
    return scores


def by_class(task: str, predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[Score]:
    """Macro F1, and of few classes the confusion matrix, each row in fractions of the examples of its class."""
    scores = [macro_f1(f"{task}/macro_F1", predicted, labels)]
    for number, name in enumerate(names if len(names) <= MAX_CONFUSED else ()):
        of_class = predicted[labels == number]
        for other, shown in enumerate(names if len(of_class) else ()):
            cell = f"{task}/confusion/{name}_as_{shown}".replace(" ", "_")
            scores.append(Score(cell, (of_class == other).astype(float), 1 / len(names), number == other))
    return scores


def _names(inputs: TaskInputs) -> Sequence[str]:
    modality = inputs.corpus.columns[inputs.corpus.label or ""]
    assert isinstance(modality, Category)
    return modality.names


def classification_validation(inputs: TaskInputs) -> list[Score]:
    """Accuracy and macro F1 of a method that classifies by itself, on the validation split."""
    label = inputs.corpus.label
    assert label is not None
    part = Labelled.of(inputs.reader, "validation", label)
    if not (isinstance(inputs.method, CanClassify) and len(part.labels)):
        return []
    logits = answers(inputs.method, inputs.processor, "classify", columns_of(part.examples))
    predicted, task = predicted_classes(torch.cat(logits).numpy()), f"validation/classify_{label}"
    accuracy = balanced_accuracy(f"{task}/accuracy", predicted, part.labels)
    return [accuracy, macro_f1(f"{task}/macro_F1", predicted, part.labels)]


def _features(inputs: TaskInputs, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    batches = answers(inputs.method, inputs.processor, "features", columns_of(examples))
    return {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}


def plot(inputs: TaskInputs) -> Panels:
    """Test examples with the predicted class: by the method itself, else by a linear probe of all its features.

    Below is the confusion matrix of the test split.
    """
    label, corpus, reader = inputs.corpus.label, inputs.corpus, inputs.reader
    assert label is not None
    names = _names(inputs)
    rows, examples = reader.read_labelled(inputs.test_splits[0], label, 2 * EXAMPLES)
    if not examples:
        return Panels([[text_panel([f"No test example has a {label}."])]])
    predict = _predictor(inputs, label)
    predicted = predict(examples)
    visual = [name for name, kind in corpus.columns.items() if isinstance(kind, Image | Video)]
    column = [*visual, *(name for name in corpus.columns if name != label)][0]
    panels = []
    for row, number in zip(rows.tolist(), predicted.tolist(), strict=True):
        truth = corpus.value(row, label)
        name = names[number] if number >= 0 else "none"
        title = clipped(name, lines=1) + ("" if number == truth else f"\n(label: {clipped(names[truth], 14, 1)})")
        panels.append(value_panel(corpus, row, column, title, number == truth))
    lines = [panels[start : start + EXAMPLES] for start in range(0, len(panels), EXAMPLES)]
    test = _some(reader, inputs.test_splits[0], label, MAX_PLOT_TEST)
    matrix = confusion_matrix(predict(test.examples), test.labels, len(names))
    legend = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    lines.append([matrix_panel(matrix, "Label (rows), predicted"), text_panel(legend)])
    return Panels(lines, f"Predicted {label}; green: correct", [1.2] * EXAMPLES)


def _predictor(inputs: TaskInputs, label: str) -> Callable[[list[Example]], np.ndarray]:
    """What predicts the classes of examples: the method itself, else a linear probe of all its features."""
    if isinstance(inputs.method, CanClassify):
        method = inputs.method
        return lambda examples: predicted_classes(
            torch.cat(answers(method, inputs.processor, "classify", columns_of(examples))).numpy()
        )
    parts = {split: _some(inputs.reader, split, label, MAX_PLOT_TRAIN) for split in ("train", "validation")}
    train, tuning = ((_joined(_features(inputs, part.examples)), part.labels) for part in parts.values())
    probe = linear_probe(train, tuning)
    return lambda examples: probe.predict(_joined(_features(inputs, examples)))


def _some(reader: Reader, split: str, label: str, max_examples: int) -> Labelled:
    """At most so many examples of a split."""
    rows, examples = reader.read_labelled(split, label, max_examples)
    return Labelled(examples, np.array([reader.corpus.value(row, label) for row in rows], dtype=np.int64))


def _joined(features: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(features.values()), axis=1)


task = Task(
    capability=CanClassify | HasFeatures,
    condition=lambda inputs: inputs.corpus.label is not None,
    order=90,
    score=classification_scores,
    plot=plot,
    validate=classification_validation,
    metrics={
        "accuracy*": MetricKind(),
        "AUC": MetricKind(),
        "auc_vs_missing_rate": MetricKind(),
        "macro_F1": MetricKind(),
        "confusion/*": MetricKind(),
    },
    headline=("classify_*/AUC", "linear_probe_*/AUC", "classify_*/accuracy", "classify_*/macro_F1"),
    forward_methods=("classify", "features"),
)
