"""Retrieval by image-text matching: a method scores every pair jointly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.capabilities import CanScorePairs
from polymodal.evaluation.embeddings import first_captions
from polymodal.evaluation.panels import EXAMPLES, Panels, retrieval_panels, text_panel, value_panel
from polymodal.evaluation.retrieval import METRICS, ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import ITEMS, WITH_TEXT, Task, TaskInputs
from polymodal.training.run import answers
from polymodal.types import Example

MAX_MATCHED = 200  # examples, all pairs of which are scored
MAX_PLOTTED = 64  # examples that are matched with every caption of a plot
BLOCK = 16  # examples that are scored with all texts at once


def matching_logits(
    method: nn.Module, processor: Processor, item: str, items: Sequence[Any], texts: list[str]
) -> Float[Tensor, "items texts"]:
    """Return the logit of every pair. item: the name of what texts are about, such as `video`."""
    blocks = [{"text": texts, item: list(items[start : start + BLOCK])} for start in range(0, len(items), BLOCK)]
    size = max(BLOCK, len(texts))
    return torch.cat([part for some in blocks for part in answers(method, processor, "itm_logits", some, size)])


def matching_scores(method: nn.Module, processor: Processor, reader: Reader, split: str, item: str) -> list[Score]:
    """Retrieval in both directions among examples with one text each, ranked by the matching logit of each pair.

    item: the name of what texts are about, such as `video`. Relevant are all examples with the same text.
    """
    _, examples = reader.read_split(split, MAX_MATCHED)
    texts = first_captions(reader.corpus, examples)
    logits = matching_logits(method, processor, item, [example[item] for example in examples], texts)
    relevant = [np.array([place for place, other in enumerate(texts) if other == text]) for text in texts]
    unit, every = np.arange(len(texts)), torch.eye(len(texts))  # so that a query's similarities are its vector
    scores = []
    for name, similarity in ((f"text_to_{item}", logits.T), (f"{item}_to_text", logits)):
        best_ranks = ranks(similarity, every, relevant)
        scores += retrieval_scores(f"{split}/matching/{name}", best_ranks, relevant, len(texts), unit)
    return scores


def _scores(inputs: TaskInputs) -> list[Score]:
    return inputs.over_test_splits(matching_scores, inputs.item)


def plot(inputs: TaskInputs) -> Panels:
    """Captions with the items that match best."""
    rows, examples = inputs.test_examples(MAX_PLOTTED)
    texts = first_captions(inputs.corpus, examples[:: len(examples) // EXAMPLES])[:EXAMPLES]
    description = f"Matching among {len(rows)} test examples; green: relevant"
    return matching_panels(inputs, rows, examples, texts, ["query"] * len(texts), description)


def matching_panels(
    inputs: TaskInputs,
    rows: Sequence[int] | np.ndarray,
    examples: Sequence[Example],
    texts: list[str],
    titles: Sequence[str],
    description: str,
) -> Panels:
    """Return each text, under its title, with the examples that match best; those with the same caption are relevant.

    rows: of the examples in the corpus.
    """
    item = inputs.item
    assert item is not None
    logits = matching_logits(inputs.method, inputs.processor, item, [example[item] for example in examples], texts)
    captions_of = [{caption.text for caption in example["text"]} for example in examples]
    return retrieval_panels(
        [text_panel([text], title) for text, title in zip(texts, titles, strict=True)],
        logits.T,
        [np.flatnonzero([text in captions for captions in captions_of]) for text in texts],
        lambda place, title, right: value_panel(inputs.corpus, int(rows[place]), inputs.item_column, title, right),
        description,
    )


task = Task(
    capability=CanScorePairs,
    requires=WITH_TEXT,
    order=20,
    score=_scores,
    plot=plot,
    metrics=METRICS,
    headline=tuple(f"matching/text_to_{item}/{metric}" for item in ITEMS for metric in ("R@10", "R@1", "MRR")),
    forward_methods=("itm_logits",),
)
