"""Mixtures of experts over image and text tokens: how much an expert tells of the modality, and the load of experts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.embeddings import first_captions
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task
from polymodal.modalities import Image, Text
from polymodal.training.run import answers
from polymodal.types import Batch

MAX_PAIRS = 200  # of a split
BATCH = 64


@runtime_checkable
class RoutesTokens(Protocol):
    """Capability: the first expert of every token of pairs in each mixture (mixtures, tokens), its modality and its
    example's number in the batch."""

    def expert_choices(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]: ...


def pointwise_information(a: Int[Tensor, " tokens"], b: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Return log p(a, b) / (p(a) p(b)) of each token in nats, whose mean is the mutual information of a and b."""
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a, b), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    ratio = joint * joint.sum() / (joint.sum(1, keepdim=True) * joint.sum(0))
    return ratio[a, b].log()


def specialization_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Return scores over all mixtures together; nothing for a method without any.

    modality_information: mutual information of expert and modality, as a fraction of the entropy of the modality; 0:
    all experts take both modalities alike, 1: each takes one. max_load: tokens of the expert with most of them, as a
    fraction of all.
    """
    examples = reader.read_split(split, MAX_PAIRS)[1]
    texts = first_captions(reader.corpus, examples)
    columns = {"image": [example["image"] for example in examples], "text": texts}
    batches = answers(method, processor, "expert_choices", columns, BATCH)
    experts = torch.cat([batch[0] for batch in batches], dim=1)
    if not len(experts):
        return []
    kinds = torch.cat([batch[1] for batch in batches])
    number = torch.cat([batch[2] + BATCH * place for place, batch in enumerate(batches)])
    entropy = float(pointwise_information(kinds, kinds).mean())
    information = torch.stack([pointwise_information(kinds, one) for one in experts]).mean(0)
    load = torch.stack([(one == one.mode().values).double() for one in experts]).mean(0)
    uniform = 1 / max(int(experts.max()) + 1, 1)
    name = f"{split}/experts"
    return [
        Score.per_cluster(f"{name}/modality_information", (information / entropy).numpy(), number.numpy(), 0.0),
        Score.per_cluster(f"{name}/max_load", load.numpy(), number.numpy(), uniform, higher_is_better=False),
    ]


task = Task(
    capability=RoutesTokens,
    requires=((Image, Text),),
    order=148,
    score=lambda inputs: inputs.over_test_splits(specialization_scores),
    metrics={
        "modality_information": MetricKind(is_fraction=False),
        "max_load": MetricKind(higher_is_better=False),
    },
    headline=("experts/modality_information",),
    forward_methods=("expert_choices",),
)
