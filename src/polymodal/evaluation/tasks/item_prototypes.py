"""Agreement of a catalog's learned prototypes with the labels of its items."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from polymodal.evaluation.classification import predicted_classes
from polymodal.evaluation.panels import EXAMPLES, NEUTRAL, Panels, clipped, text_panel
from polymodal.evaluation.statistics import MetricKind, Score, group_numbers
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.training.run import evaluating

ITEM_GROUPS = 20
MAX_PLOTTED, PLOTTED_ITEMS = 8, 5  # prototypes of a plot, and items of each


@runtime_checkable
class HasPrototypes(Protocol):
    """Capability: how much each item of the catalogue belongs to each of a few prototypes; rows sum to 1."""

    def item_prototypes(self) -> Tensor: ...


def prototype_scores(method: nn.Module, processor: Any) -> list[Score]:
    """Mutual information of an item's prototype and its first label, adjusted so that chance is 0.

    The unit is a group of items that is left out.
    """
    assert isinstance(method, HasPrototypes)
    labelled = [(number, item.labels[0]) for number, item in enumerate(processor.history.catalogue) if item.labels]
    if not labelled:
        return []
    with evaluating(method), torch.no_grad():
        prototypes = predicted_classes(method.item_prototypes().numpy(force=True))
    numbers, labels = zip(*labelled, strict=True)
    name = "items/prototypes_and_labels/mutual_information"
    return [adjusted_mutual_information(name, np.array(labels), prototypes[list(numbers)])]


def adjusted_mutual_information(
    name: str, labels: Shaped[np.ndarray, " items"], clusters: Shaped[np.ndarray, " items"]
) -> Score:
    """Mutual information of two partitions of items, less that of random ones, by their mean entropy (Vinh et al.
    2010); a jackknife over groups of items.
    """
    rows, columns = (np.unique(one, return_inverse=True)[1] for one in (labels, clusters))
    cells = rows * (columns.max() + 1) + columns
    size = (rows.max() + 1) * (columns.max() + 1)
    group = group_numbers(len(cells), ITEM_GROUPS)
    parts = [np.ones(len(cells), bool), *(group != one for one in np.unique(group))]
    whole, *without = (
        _adjusted(np.bincount(cells[part], minlength=size).reshape(rows.max() + 1, -1)) for part in parts
    )
    return Score.from_jackknife(name, whole, np.array(without), 0.0)


def _adjusted(table: Int[np.ndarray, "labels clusters"]) -> float:
    """Of a contingency table. Two partitions of one part each agree fully, as in scikit-learn."""
    from sklearn.metrics.cluster import expected_mutual_information

    table = table[np.ix_(table.sum(1) > 0, table.sum(0) > 0)]
    if table.shape == (1, 1):
        return 1.0
    count = table.sum()
    parts = [np.asarray(one) / count for one in (table.sum(1), table.sum(0))]
    joint = table / count
    filled = joint > 0
    information = float((joint[filled] * np.log((joint / np.outer(*parts))[filled])).sum())
    expected = float(expected_mutual_information(table.astype(np.float64), int(count)))
    entropy = float(np.mean([-(one * np.log(one)).sum() for one in parts]))
    return (information - expected) / max(entropy - expected, np.finfo(float).eps)


def plot(inputs: TaskInputs) -> Panels:
    """The items that belong most to each prototype, with their first labels."""
    catalogue = inputs.processor.history.catalogue
    with evaluating(inputs.method), torch.no_grad():
        weights = inputs.method.item_prototypes().float().cpu()  # type: ignore[operator]
    panels = []
    for number, column in enumerate(weights.T[:MAX_PLOTTED]):
        items = [catalogue[item] for item in column.argsort(descending=True)[:PLOTTED_ITEMS].tolist()]
        lines = [(f"{clipped(item.title, 22, 1)} ({', '.join(item.labels[:1])})", NEUTRAL) for item in items]
        panels.append(text_panel(lines, f"prototype {number + 1}"))
    rows = [panels[start : start + EXAMPLES] for start in range(0, len(panels), EXAMPLES)]
    return Panels(rows, "Items of each prototype, with a label", [1.9] * EXAMPLES, 0.8)


task = Task(
    capability=HasPrototypes,
    order=170,
    score=lambda inputs: prototype_scores(inputs.method, inputs.processor),
    plot=plot,
    metrics={"mutual_information": MetricKind(is_fraction=False)},
    headline=("items/prototypes_and_labels/mutual_information",),
    forward_methods=("item_prototypes",),
)
