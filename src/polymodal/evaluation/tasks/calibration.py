"""Calibration of the probability that an item and a text belong together: expected calibration error, Brier score."""

from __future__ import annotations

from typing import Any

import numpy as np

from polymodal.evaluation.calibration import BINS, calibration_scores, reliability
from polymodal.evaluation.capabilities import CanScorePairs
from polymodal.evaluation.embeddings import first_captions
from polymodal.evaluation.panels import NEUTRAL, NOTE, Panel, Panels
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import WITH_TEXT, Task, TaskInputs
from polymodal.training.run import answers

MAX_EXAMPLES = 400
BLOCK = 8  # examples that are scored with all their texts at once


def match_probabilities(inputs: TaskInputs, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the probability of each pair, whether it belongs together, and the number of its item.

    Half of the pairs are items with their own first caption, the others have that of another item, at random; none that
    is among their own captions. Neighbors in a corpus are alike, and are not what matching is trained to tell apart.
    """
    assert inputs.item is not None
    _, examples = inputs.reader.read_split(split, MAX_EXAMPLES)
    examples = [examples[number] for number in np.random.default_rng(0).permutation(len(examples))]
    texts, probabilities, truth, unit = first_captions(inputs.corpus, examples), [], [], []
    captions = [{caption.text for caption in example["text"]} for example in examples]
    columns = {"text": texts, inputs.item: [example[inputs.item] for example in examples]}
    logits = answers(inputs.method, inputs.processor, "itm_logits", columns, batch_size=BLOCK)
    for block, values in enumerate(logits):
        size, first = len(values), block * BLOCK
        for row in range(size):
            of_next = (row + 1) % size
            pairs = [row] if texts[first + of_next] in captions[first + row] else [row, of_next]
            probabilities += values[row, pairs].float().sigmoid().tolist()
            truth += [1.0, 0.0][: len(pairs)]
            unit += [first + row] * len(pairs)
    return np.array(probabilities), np.array(truth), np.array(unit)


def _scores(inputs: TaskInputs) -> list[Score]:
    return [
        score
        for split in inputs.test_splits
        for score in calibration_scores(f"{split}/matching", *match_probabilities(inputs, split))
    ]


def plot(inputs: TaskInputs) -> Panels:
    """Draw the reliability diagram, and beside it how many pairs have each probability."""
    probabilities, truth, _ = match_probabilities(inputs, inputs.test_splits[0])
    diagram = reliability(probabilities, truth)
    places = (np.arange(BINS) + 0.5) / BINS

    def accuracies(axes: Any) -> None:
        axes.bar(places, diagram.accuracy, width=0.9 / BINS, color=NOTE)
        axes.plot([0, 1], [0, 1], "--", color=NEUTRAL, linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))

    def counts(axes: Any) -> None:
        axes.bar(places, diagram.pairs, width=0.9 / BINS, color=NOTE)
        axes.set(xlim=(0, 1))

    error = float(calibration_scores("", probabilities, truth, np.arange(len(truth)))[0].value)
    titles = f"fraction of matches by\nprobability 0 to 1, ECE {error:.2f}", "pairs by\nprobability 0 to 1"
    panels = [Panel(accuracies, titles[0]), Panel(counts, titles[1])]
    return Panels([panels], "Reliability of matching probabilities", [2.0, 2.0], 2.0)


task = Task(
    capability=CanScorePairs,
    requires=WITH_TEXT,
    order=24,
    score=_scores,
    plot=plot,
    metrics={
        "ECE": MetricKind(higher_is_better=False),
        "Brier": MetricKind(higher_is_better=False),
    },
    headline=("matching/ECE",),
    forward_methods=("itm_logits",),
    protocol=lambda inputs: {"bins": BINS, "negatives": "the caption of another item, as many as positives"},
)
