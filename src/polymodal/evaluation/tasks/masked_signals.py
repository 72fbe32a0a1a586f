"""Masked signal modeling on held-out pairs: masked tokens and masked patches, each predicted from image and text."""

from __future__ import annotations

from collections import Counter
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.embeddings import first_captions
from polymodal.evaluation.panels import (
    EXAMPLES,
    NEUTRAL,
    Panels,
    image_panel,
    shown_images,
    text_panel,
    verdict_color,
)
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Text
from polymodal.training.run import answers
from polymodal.types import Batch

MAX_PAIRS = 400  # of a split
BATCH = 64


@runtime_checkable
class PredictsMaskedSignals(Protocol):
    """Capability: of every pair, the negative log-likelihood (nll) of its masked tokens, how many of them are the most
    probable ones, their ids (-1: not masked), and the squared error and the variance of its masked patches.

    For plots: images without and with the predicted patches, and the predicted ids (-1: not masked).
    """

    def masked_errors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...

    def masked_views(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]: ...


def masked_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Return scores of masked tokens and patches.

    mlm_accuracy: chance: the most frequent one of the masked tokens. mlm_image_gain: accuracy minus that with the image
    of another pair. mim_mse: squared error of normalized patches; chance: that of the mean of each patch.
    """
    examples = reader.read_split(split, MAX_PAIRS)[1]
    texts = first_captions(reader.corpus, examples)
    images = [example["image"] for example in examples]
    matched, other = (
        _concatenated(answers(method, processor, "masked_errors", {"image": shown, "text": texts}, BATCH))
        for shown in (images, [*images[1:], *images[:1]])
    )
    (nll, correct, squared_error, variance), masked, ids = matched
    weights, name = np.maximum(masked, 0.0), f"{split}/masked"
    frequent = max(Counter(ids.tolist()).values(), default=0) / max(len(ids), 1)
    each = np.maximum(masked, 1)
    return [
        Score(f"{name}/mlm_accuracy", correct / each, frequent, weights=weights),
        Score(f"{name}/mlm_image_gain", (correct - other[0][1]) / each, 0.0, weights=weights),
        Score(f"{name}/mlm_nll", nll / each, higher_is_better=False, weights=weights),
        Score(f"{name}/mim_mse", squared_error, float(variance.mean()), higher_is_better=False),
    ]


def _concatenated(batches: list[tuple[Tensor, ...]]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Errors of all pairs, the number of masked tokens of each, and the ids of the masked tokens."""
    masked = torch.cat([(batch[2] >= 0).sum(1) for batch in batches]).double().numpy()
    ids = torch.cat([batch[2][batch[2] >= 0] for batch in batches]).numpy()
    columns = [torch.cat([batch[place] for batch in batches]).double().numpy() for place in (0, 1, 3, 4)]
    return columns, masked, ids


def plot(inputs: TaskInputs) -> Panels:
    """Pairs: image, visible patches, reconstruction; text with masked tokens in brackets, and the predictions."""
    method, processor = inputs.method, inputs.processor
    examples = inputs.test_examples(EXAMPLES)[1]
    texts, images = first_captions(inputs.corpus, examples), [example["image"] for example in examples]
    ((visible, reconstructed, ids),) = answers(
        method, processor, "masked_views", {"image": images, "text": texts}, len(texts)
    )
    tokens, shown, rows = processor(text=texts)["text"], shown_images(images), []
    pixels = [processor.image.shown(values) for values in (visible, reconstructed)]
    for number in range(len(texts)):
        masked = ids[number] >= 0
        content = tokens.content_mask[number]
        written, predicted = (
            _with_brackets(processor, row[content].tolist(), masked[content].tolist())
            for row in (tokens.ids[number], torch.where(masked, ids[number], tokens.ids[number]))
        )
        right = bool((ids[number] == tokens.ids[number])[masked].all())
        lines = [(f"[masked]: {written}", NEUTRAL), (f"predicted: {predicted}", verdict_color(right))]
        rows.append([image_panel(shown[number]), *(image_panel(each[number]) for each in pixels), text_panel(lines)])
    return Panels(rows, "Masked pairs: image, visible patches, reconstruction, and masked tokens", [1, 1, 1, 3])


def _with_brackets(processor: Processor, ids: list[int], masked: list[bool]) -> str:
    """The text of token ids, masked ones in brackets."""
    words = processor.texts([[one] for one in ids])
    return " ".join(
        f"[{word.strip()}]" if is_masked else word.strip() for word, is_masked in zip(words, masked, strict=True)
    )


task = Task(
    capability=PredictsMaskedSignals,
    requires=((Image, Text),),
    order=147,
    score=lambda inputs: inputs.over_test_splits(masked_scores),
    plot=plot,
    metrics={
        "mlm_accuracy": MetricKind(),
        "mlm_image_gain": MetricKind(is_fraction=False),
        "mlm_nll": MetricKind("nats per token", higher_is_better=False),
        "mim_mse": MetricKind("variances", higher_is_better=False),
    },
    headline=("masked/mlm_accuracy", "masked/mim_mse"),
    forward_methods=("masked_errors", "masked_views"),
)
