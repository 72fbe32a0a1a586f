"""Agreement of a catalog's learned prototypes with the labels of its items."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task
from polymodal.training.run import evaluating


@runtime_checkable
class HasPrototypes(Protocol):
    """Capability: how much each item of the catalogue belongs to each of a few prototypes; rows sum to 1."""

    def item_prototypes(self) -> Tensor: ...


def prototype_scores(method: nn.Module, processor: Any) -> list[Score]:
    """How much an item's prototype tells of its first label: mutual information, adjusted so that chance is 0."""
    from sklearn.metrics import adjusted_mutual_info_score

    assert isinstance(method, HasPrototypes)
    labelled = [(number, item.labels[0]) for number, item in enumerate(processor.history.catalogue) if item.labels]
    if not labelled:
        return []
    with evaluating(method), torch.no_grad():
        prototypes = method.item_prototypes().argmax(1).numpy(force=True)
    numbers, labels = zip(*labelled, strict=True)
    agreement = adjusted_mutual_info_score(labels, prototypes[list(numbers)])
    return [Score("items/prototypes_and_labels/mutual_information", np.array([agreement]), 0.0)]


task = Task(
    capability=HasPrototypes,
    order=170,
    score=lambda inputs: prototype_scores(inputs.method, inputs.processor),
    metrics={"mutual_information": MetricKind()},
    headline=("items/prototypes_and_labels/mutual_information",),
    forward_methods=("item_prototypes",),
)
