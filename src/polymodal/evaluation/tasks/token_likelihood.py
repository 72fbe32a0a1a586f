"""How well the next token of documents of text and images is predicted, by modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.instructions import longest_caption
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task
from polymodal.modalities import Image, Interleaved, Text
from polymodal.training.run import answers
from polymodal.types import Batch

BATCH = 32


@runtime_checkable
class CanScoreTokens(Protocol):
    """Capability: how well the next token of documents is predicted, by modality.

    vocab_sizes: how many tokens there are of each modality.
    """

    vocab_sizes: Mapping[str, int]

    def token_nll(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each modality, the sum of -log p over a row's tokens, and how many they are."""
        ...


def document_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Nats a token, of each modality and of all: of the examples' documents, or of images with their longest captions
    before and after them.

    The unit is an example; guessing takes every token of a modality to be as likely.
    """
    assert isinstance(method, CanScoreTokens)
    _, examples = reader.read_split(split)
    documents: list[list[Any]] = []
    owners: list[int] = []
    for number, example in enumerate(examples):
        if "document" in example:
            own = [example["document"]]
        else:
            own = [[longest_caption(example), example["image"]], [example["image"], longest_caption(example)]]
        documents += own
        owners += [number] * len(own)
    found = answers(method, processor, "token_nll", {"document": documents}, BATCH)
    scores = []
    for name in found[0]:
        nats, count = (
            np.bincount(owners, torch.cat([part[name][place] for part in found]).numpy()) for place in (0, 1)
        )
        chance = float(np.log(method.vocab_sizes[name])) if name in method.vocab_sizes else None
        units = nats / np.maximum(count, 1)
        scores.append(Score(f"{split}/{name}/nll_per_token", units, chance, higher_is_better=False, weights=count))
    return scores


task = Task(
    capability=CanScoreTokens,
    requires=((Image, Text), (Interleaved,)),
    order=120,
    score=lambda inputs: inputs.over_test_splits(document_scores),
    validate=lambda inputs: document_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    metrics={"nll_per_token": MetricKind("nats per token", higher_is_better=False)},
    headline=("*/nll_per_token",),
    forward_methods=("token_nll",),
)
