"""Classification of a label, also with missing cells of a table (protocols of TIP, Du et al. 2024, section 4.3).

Cells are masked in training, validation and test rows alike before a linear probe is fitted on frozen features; a
method that classifies by itself was trained already, so that for it only test rows lose cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polymodal.data.loader import Reader
from polymodal.evaluation.classification import area_under_curve, balanced_accuracy, linear_probe, predicted_classes
from polymodal.evaluation.missing_modalities import (
    PROTOCOLS,
    RATES,
    Labelled,
    columns_by_importance,
    columns_of,
    missing_cells,
)
from polymodal.evaluation.panels import EXAMPLES, Panels, clipped, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Category, Image, Video
from polymodal.training.run import answers
from polymodal.types import Batch, Example

MAX_PLOT_TRAIN = 1000  # examples that the linear probe of a plot is fitted on


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
        scores.append(balanced_accuracy(f"{split}/{task}/{condition}accuracy", predicted_classes(likely), labels))
        scores.append(area_under_curve(f"{split}/{task}/{condition}AUC", likely, labels))

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


def _features(inputs: TaskInputs, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    batches = answers(inputs.method, inputs.processor, "features", columns_of(examples))
    return {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}


def plot(inputs: TaskInputs) -> Panels:
    """Test examples with the predicted class: by the method itself, else by a linear probe of all its features."""
    label, corpus, reader = inputs.corpus.label, inputs.corpus, inputs.reader
    assert label is not None
    modality = corpus.columns[label]
    assert isinstance(modality, Category)
    rows, examples = reader.read_labelled(inputs.test_splits[0], label, 2 * EXAMPLES)
    if not examples:
        return Panels([[text_panel([f"No test example has a {label}."])]])
    if isinstance(inputs.method, CanClassify):
        logits = answers(inputs.method, inputs.processor, "classify", columns_of(examples))
        predicted = predicted_classes(torch.cat(logits).numpy())
    else:
        parts = {split: _some(reader, split, label) for split in ("train", "validation")}
        train, tuning = ((_joined(_features(inputs, part.examples)), part.labels) for part in parts.values())
        predicted = linear_probe(train, tuning).predict(_joined(_features(inputs, examples)))
    visual = [name for name, kind in corpus.columns.items() if isinstance(kind, Image | Video)]
    column = [*visual, *(name for name in corpus.columns if name != label)][0]
    panels = []
    for row, number in zip(rows.tolist(), predicted.tolist(), strict=True):
        truth = corpus.value(row, label)
        name = modality.names[number] if number >= 0 else "none"
        title = clipped(name, lines=1) + (
            "" if number == truth else f"\n(label: {clipped(modality.names[truth], 14, 1)})"
        )
        panels.append(value_panel(corpus, row, column, title, number == truth))
    lines = [panels[start : start + EXAMPLES] for start in range(0, len(panels), EXAMPLES)]
    return Panels(lines, f"Predicted {label}; green: correct", [1.2] * EXAMPLES)


def _some(reader: Reader, split: str, label: str) -> Labelled:
    """At most `MAX_PLOT_TRAIN` examples of a split."""
    rows, examples = reader.read_labelled(split, label, MAX_PLOT_TRAIN)
    return Labelled(examples, np.array([reader.corpus.value(row, label) for row in rows], dtype=np.int64))


def _joined(features: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(features.values()), axis=1)


task = Task(
    capability=CanClassify | HasFeatures,
    condition=lambda inputs: inputs.corpus.label is not None,
    order=90,
    score=classification_scores,
    plot=plot,
    metrics={"accuracy*": MetricKind(), "AUC": MetricKind(), "auc_vs_missing_rate": MetricKind()},
    headline=("classify_*/AUC", "linear_probe_*/AUC"),
    forward_methods=("classify", "features"),
)
