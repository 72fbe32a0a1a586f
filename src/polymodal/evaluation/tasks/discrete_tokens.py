"""Discrete tokens that images and captions share: how many are active, and whether those of a pair agree (FDT)."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.embeddings import first_captions
from polymodal.evaluation.panels import (
    EXAMPLES,
    Panels,
    clipped,
    heat_panel,
    image_panel,
    shown_images,
    text_panel,
)
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Text
from polymodal.training.run import answers
from polymodal.types import Batch

MAX_PAIRS = 400  # of a split
MAX_CONCEPTS = 4  # of a pair in a plot


@runtime_checkable
class HasDiscreteTokens(Protocol):
    """Capability: weights of learned discrete tokens in images and texts, and the votes of patches and words for them.

    Padding votes with -inf.
    """

    def concept_weights(self, batch: Batch) -> dict[str, Tensor]: ...

    def concept_votes(self, batch: Batch) -> dict[str, Tensor]: ...


def jaccard(a: Bool[Tensor, "rows concepts"], b: Bool[Tensor, "columns concepts"]) -> Float[Tensor, "rows columns"]:
    """Return the overlap of every two sets of active tokens: intersection over union; 0 for two empty ones."""
    first, second = a.float(), b.float()
    both = first @ second.T
    return both / (first.sum(1)[:, None] + second.sum(1) - both).clamp(min=1)


def discrete_token_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Return scores of the active tokens, those with a weight above 0.

    image_active, text_active: the fraction of all tokens that is active in an image, or a caption. unused: tokens that
    are active in none. overlap: Jaccard index of the active tokens of a pair; chance: of an image and the caption of
    another one.
    """
    examples = reader.read_split(split, MAX_PAIRS)[1]
    texts = first_captions(reader.corpus, examples)
    columns = {"image": [example["image"] for example in examples], "text": texts}
    batches = answers(method, processor, "concept_weights", columns, 64)
    active = {name: torch.cat([batch[name] for batch in batches]) > 0 for name in columns}
    overlap = jaccard(active["image"], active["text"])
    other = torch.tensor([[a != b for b in texts] for a in texts])
    chance = float(overlap[other].mean()) if other.any() else None
    unused = ~(active["image"].any(0) | active["text"].any(0))
    name = f"{split}/discrete_tokens"
    return [
        Score(f"{name}/overlap", overlap.diagonal().numpy(), chance),
        *(
            Score(f"{name}/{one}_active", active[one].float().mean(1).numpy(), higher_is_better=False)
            for one in columns
        ),
        Score(f"{name}/unused", unused.float().numpy(), higher_is_better=False),
    ]


def plot(inputs: TaskInputs) -> Panels:
    """Pairs with the tokens that weigh most in image and caption, the patches that vote for each, and its words."""
    method, processor = inputs.method, inputs.processor
    _, examples = inputs.test_examples(EXAMPLES)
    texts = first_captions(inputs.corpus, examples)
    columns = {"image": [example["image"] for example in examples], "text": texts}
    (weights,) = answers(method, processor, "concept_weights", columns, len(texts))
    (votes,) = answers(method, processor, "concept_votes", columns, len(texts))
    tokens, images = processor(text=texts)["text"], shown_images(columns["image"])
    content = tokens.content_mask
    rows = []
    for number, text in enumerate(texts):
        common = torch.minimum(weights["image"][number], weights["text"][number])
        panels = [image_panel(images[number]), text_panel([text])]
        for concept in common.argsort(descending=True, stable=True)[:MAX_CONCEPTS].tolist():
            of_words = votes["text"][number][:, concept].masked_fill(~content[number], -math.inf)
            ids = [tokens.ids[number, place : place + 1].tolist() for place in of_words.argsort(descending=True)[:2]]
            title = clipped(f"{concept}: {', '.join(processor.text.texts(ids))}", 20, 1)
            panels.append(heat_panel(images[number], votes["image"][number][:, concept], title))
        rows.append(panels)
    title = "Discrete tokens that image and caption share: the patches and the words that vote for them"
    return Panels(rows, title, [1, 1.2, *[1.0] * MAX_CONCEPTS])


task = Task(
    capability=HasDiscreteTokens,
    requires=((Image, Text),),
    order=87,
    score=lambda inputs: inputs.over_test_splits(discrete_token_scores),
    plot=plot,
    metrics={
        "overlap": MetricKind(),
        "*_active": MetricKind(higher_is_better=False),
        "unused": MetricKind(higher_is_better=False),
    },
    headline=("discrete_tokens/overlap", "discrete_tokens/image_active"),
    forward_methods=("concept_weights", "concept_votes"),
)
