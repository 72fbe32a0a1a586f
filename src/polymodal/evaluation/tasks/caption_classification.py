"""Classification of an image together with its caption, which may say the class; and what each of both contributes.

Beside the scores are those with the captions, and with the images, of other examples. Captions are those of the test
examples: a high score is no score of recognizing images, unless it falls with images of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polymodal.evaluation.classification import balanced_accuracy, macro_f1, predicted_classes
from polymodal.evaluation.missing_modalities import Labelled
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Text
from polymodal.modalities.text import Caption
from polymodal.training.run import answers
from polymodal.types import Batch


@runtime_checkable
class CanClassifyWithCaptions(Protocol):
    """Capability: logits of the classes of the corpus's label from an image and what is read of its captions."""

    def caption_of(self, captions: Sequence[Caption]) -> str: ...

    def classify_with_captions(self, batch: Batch) -> Tensor: ...


def caption_classification_scores(inputs: TaskInputs) -> list[Score]:
    """Accuracy and macro F1 on all test splits: with each image's caption, with another caption, and another image."""
    return [score for split in inputs.test_splits for score in _scores(inputs, split, controls=True)]


def _scores(inputs: TaskInputs, split: str, controls: bool) -> list[Score]:
    label = inputs.corpus.label
    assert label is not None
    part = Labelled.of(inputs.reader, split, label)
    if not len(part.labels):
        return []
    images, captions = ([example[name] for example in part.examples] for name in ("image", "text"))
    texts = [inputs.method.caption_of(one) for one in captions]  # type: ignore[operator]
    order = np.random.default_rng(0).permutation(len(texts))
    other = order[(np.argsort(order) + 1) % len(order)]  # of no example its own
    inputs_of = {"caption": (images, texts)}
    if controls:
        inputs_of["shuffled_caption"] = images, [texts[place] for place in other]
        inputs_of["shuffled_image"] = [images[place] for place in other], texts
    scores = []
    for name, (image, text) in inputs_of.items():
        columns = {"image": image, "text": text}
        logits = answers(inputs.method, inputs.processor, "classify_with_captions", columns)
        predicted, task = predicted_classes(torch.cat(logits).numpy()), f"{split}/classify_{label}_with_{name}"
        scores.append(balanced_accuracy(f"{task}/accuracy", predicted, part.labels))
        scores.append(macro_f1(f"{task}/macro_F1", predicted, part.labels))
    return scores


def protocol(inputs: TaskInputs) -> Mapping[str, Any]:
    return {"reads": "image and caption of each test example, without words of the names of classes"}


task = Task(
    capability=CanClassifyWithCaptions,
    requires=((Image, Text),),
    condition=lambda inputs: inputs.corpus.label is not None,
    order=91,
    score=caption_classification_scores,
    validate=lambda inputs: _scores(inputs, "validation", controls=False),
    metrics={"accuracy": MetricKind(), "macro_F1": MetricKind()},
    headline=("classify_*_with_caption/accuracy", "classify_*_with_shuffled_caption/accuracy"),
    forward_methods=("classify_with_captions",),
    protocol=protocol,
)
