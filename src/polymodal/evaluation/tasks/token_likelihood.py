"""Likelihood of the tokens of documents of text and images, by modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.instructions import longest_caption
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.panels import Panels, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Interleaved, Text
from polymodal.training.run import answers
from polymodal.types import Batch, Example

BATCH = 32
MAX_PLOTTED = 6  # examples


@runtime_checkable
class CanScoreTokens(Protocol):
    """Capability: log-likelihood of the tokens of documents, by modality.

    vocab_sizes: number of tokens of each modality.
    """

    vocab_sizes: Mapping[str, int]

    def token_nll(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each modality, the sum of -log p over a row's tokens, and how many they are."""
        ...


def document_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Nats a token, of each modality and of all: of the examples' documents, or of images with their longest captions
    before and after them.

    The unit is an example; chance: all tokens of a modality are equally likely.
    """
    assert isinstance(method, CanScoreTokens)
    _, examples = reader.read_split(split)
    documents: list[list[Any]] = []
    owners: list[int] = []
    for number, example in enumerate(examples):
        of_example = _documents(example)
        documents += of_example
        owners += [number] * len(of_example)
    nll = answers(method, processor, "token_nll", {"document": documents}, BATCH)
    scores = []
    for name in nll[0]:
        nats, count = (np.bincount(owners, torch.cat([part[name][place] for part in nll]).numpy()) for place in (0, 1))
        chance = float(np.log(method.vocab_sizes[name])) if name in method.vocab_sizes else None
        units = nats / np.maximum(count, 1)
        scores.append(Score(f"{split}/{name}/nll_per_token", units, chance, higher_is_better=False, weights=count))
    return scores


def plot(inputs: TaskInputs) -> Panels:
    """Test examples from the lowest to the highest negative log-likelihood per token, with that of each modality."""
    rows, examples = inputs.test_examples(MAX_PLOTTED)
    kind = Interleaved if inputs.corpus.has_modality(Interleaved) else Image
    column = inputs.corpus.column_with(kind)
    panels = []
    for row, example in zip(rows.tolist(), examples, strict=True):
        documents = {"document": _documents(example)[:1]}
        (nll,) = answers(inputs.method, inputs.processor, "token_nll", documents)
        means = {name: float(nats.sum() / count.sum().clamp(min=1)) for name, (nats, count) in nll.items()}
        total = sum(float(nats.sum()) for nats, _ in nll.values())
        lines = [f"{name}: {value:.2f} nats per token" for name, value in means.items()]
        if kind is Image:
            lines.append(longest_caption(example))
        panels.append((total, [value_panel(inputs.corpus, row, column), text_panel(lines)]))
    ordered = [pair for _, pair in sorted(panels, key=lambda one: one[0])]
    half = -(-len(ordered) // 2)
    lines_of = [[*pair, *([*ordered[half:], []])[place]] for place, pair in enumerate(ordered[:half])]
    return Panels(lines_of, "Documents from the most to the least probable", (1.0, 1.8, 1.0, 1.8))


def _documents(example: Example) -> list[list[Any]]:
    """The document of an example; of an image with captions, the longest one before and after the image."""
    if "document" in example:
        return [example["document"]]
    return [[longest_caption(example), example["image"]], [example["image"], longest_caption(example)]]


task = Task(
    capability=CanScoreTokens,
    requires=((Image, Text), (Interleaved,)),
    order=120,
    score=lambda inputs: inputs.over_test_splits(document_scores),
    validate=lambda inputs: document_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    plot=plot,
    metrics={"nll_per_token": MetricKind("nats per token", higher_is_better=False)},
    headline=("*/nll_per_token",),
    forward_methods=("token_nll",),
)
