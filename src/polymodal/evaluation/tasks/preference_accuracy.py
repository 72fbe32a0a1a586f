"""Accuracy and margin of the rewards that a policy implies: how often, and how much, chosen answers have higher ones.

The reward is beta * (log p of the policy - log p of the reference), as in DPO (Rafailov et al. 2023, section 4).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.conversation import IMAGE
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task
from polymodal.modalities import Preferences
from polymodal.modalities.preference import Preference
from polymodal.training.run import answers
from polymodal.types import Batch

BATCH, MAX_EXAMPLES = 32, 5000


@runtime_checkable
class HasRewards(Protocol):
    """Capability: the implicit reward of each answer of a batch."""

    def implicit_rewards(self, batch: Batch) -> Tensor: ...


def reward_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """The fraction of pairs whose chosen answer has the higher reward; equal rewards count half. And the mean margin.

    The margin is the reward of the chosen answer less that of the rejected one. All pairs of an example are drawn
    together. Chance is 1/2 and a margin of 0, which is that of the reference.
    """
    _, examples = reader.read_split(split, MAX_EXAMPLES)
    pairs = [
        (number, example.get(IMAGE), pair)
        for number, example in enumerate(examples)
        for pair in example.get("preferences", ())
    ]
    if not pairs:
        return []
    margins = np.zeros(len(pairs))
    for with_image in (False, True):
        kept = [n for n, (_, image, _) in enumerate(pairs) if (image is not None) == with_image]
        if kept:
            margins[kept] = _margins(method, processor, [pairs[n][1:] for n in kept])
    correct = np.where(margins == 0, 0.5, margins > 0)
    unit = np.array([number for number, *_ in pairs])
    return [
        Score.per_cluster(f"{split}/preferences/reward_accuracy", correct, unit, 0.5),
        Score.per_cluster(f"{split}/preferences/reward_margin", margins, unit, 0.0),
    ]


def _margins(method: nn.Module, processor: Processor, pairs: list[tuple[Any, Preference]]) -> np.ndarray:
    """Return the reward of the chosen answer less that of the rejected one; all pairs have an image, or none has."""
    rewards = []
    for texts in ([pair.chosen for _, pair in pairs], [pair.rejected for _, pair in pairs]):
        columns: dict[str, list[Any]] = {"question": [pair.question for _, pair in pairs], "answer": texts}
        if pairs[0][0] is not None:
            columns[IMAGE] = [image for image, _ in pairs]
        rewards.append(torch.cat(answers(method, processor, "implicit_rewards", columns, BATCH)).double().numpy())
    return rewards[0] - rewards[1]


task = Task(
    capability=HasRewards,
    requires=((Preferences,),),
    order=143,
    score=lambda inputs: inputs.over_test_splits(reward_scores),
    validate=lambda inputs: reward_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    metrics={
        "preferences/reward_accuracy": MetricKind(),
        "preferences/reward_margin": MetricKind("nats", is_fraction=False),
    },
    headline=("preferences/reward_accuracy",),
    forward_methods=("implicit_rewards",),
)
