"""Classification of a label by an attentive probe on all tokens of a frozen image encoder (AIM, AIMv2, V-JEPA).

The protocol is that of AIMv2 (Fini et al. 2024, appendix) at a small scale: AdamW, the learning rate of a grid that is
best on the validation split. Classes weigh the same in the loss, however frequent they are, as in the metric.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.evaluation.classification import area_under_curve, balanced_accuracy, predicted_classes
from polymodal.evaluation.panels import EXAMPLES, Panels, clipped, heat_panel, image_panel, text_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.layers.attentive_probe import AttentiveProbe
from polymodal.modalities import Category, Image
from polymodal.training.run import answers
from polymodal.types import Batch, Example

MAX_TRAIN = 5000  # examples
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
WEIGHT_DECAY = 0.05
EPOCHS = 20
BATCH = 64
ENCODED_TOGETHER = 8 * BATCH  # test images whose tokens are in memory at once


@runtime_checkable
class HasPatchFeatures(Protocol):
    """Capability: all tokens of an image, and which of them are no padding."""

    def patch_features(self, batch: Batch) -> tuple[Tensor, Tensor]: ...


class LabelledTokens(NamedTuple):
    """Tokens of the images of a split, their mask, and the labels."""

    tokens: Float[Tensor, "examples length width"]
    mask: Bool[Tensor, "examples length"]
    labels: np.ndarray

    @classmethod
    def of(cls, inputs: TaskInputs, split: str, max_examples: int | None = None) -> LabelledTokens:
        """Encode the images of a split that have a label."""
        label = inputs.corpus.label
        assert label is not None
        return cls.of_examples(inputs, label, *inputs.reader.read_labelled(split, label, max_examples))

    @classmethod
    def of_examples(cls, inputs: TaskInputs, label: str, rows: np.ndarray, examples: list[Example]) -> LabelledTokens:
        images = {"image": [example["image"] for example in examples]}
        batches = answers(inputs.method, inputs.processor, "patch_features", images, BATCH)
        length = max(mask.shape[1] for _, mask in batches)
        tokens, mask = (
            torch.cat([F.pad(batch[part], (*[0, 0] * (1 - part), 0, length - batch[1].shape[1])) for batch in batches])
            for part in (0, 1)
        )
        labels = np.array([inputs.corpus.value(row, label) for row in rows], dtype=np.int64)
        return cls(tokens.float(), mask, labels)


def fit_probe(train: LabelledTokens, validation: LabelledTokens, num_classes: int) -> AttentiveProbe:
    """Train a probe with each learning rate, and return the best on the validation part; in evaluation mode."""
    with torch.enable_grad():
        probes = [_trained(train, num_classes, rate) for rate in LEARNING_RATES]

    def accuracy(probe: AttentiveProbe) -> float:
        return balanced_accuracy("", predicted_classes(probabilities(probe, validation)), validation.labels).value

    return max(probes, key=accuracy)


def probabilities(probe: AttentiveProbe, part: LabelledTokens) -> Float[np.ndarray, "examples classes"]:
    with torch.no_grad():
        parts = zip(part.tokens.split(BATCH), part.mask.split(BATCH), strict=True)
        return torch.cat([probe(tokens, mask).softmax(1) for tokens, mask in parts]).numpy()


def _trained(train: LabelledTokens, num_classes: int, learning_rate: float) -> AttentiveProbe:
    """The same initial weights and the same order of examples for each learning rate."""
    generator = torch.Generator().manual_seed(0)
    width = train.tokens.shape[2]
    probe = AttentiveProbe(width, num_classes, next(heads for heads in (4, 3, 2, 1) if width % heads == 0))
    for parameter in probe.parameters():
        with torch.no_grad():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    labels = torch.from_numpy(train.labels)
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    optimizer = torch.optim.AdamW(probe.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * math.ceil(len(labels) / BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            logits = probe(train.tokens[rows], train.mask[rows])
            loss = F.cross_entropy(logits, labels[rows], weight=1 / counts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return copy.deepcopy(probe).eval()


def attentive_probe_scores(inputs: TaskInputs) -> list[Score]:
    """Return accuracy and area under the ROC curve of the probe, both means over classes, on every test split."""
    probe, names = _fitted(inputs)
    label = inputs.corpus.label
    assert label is not None
    scores = []
    for split in inputs.test_splits:
        rows, examples = inputs.reader.read_labelled(split, label)
        if not examples:
            continue
        likelihoods, labels = [], []
        for start in range(0, len(rows), ENCODED_TOGETHER):
            some = slice(start, start + ENCODED_TOGETHER)
            part = LabelledTokens.of_examples(inputs, label, rows[some], examples[some])
            likelihoods.append(probabilities(probe, part))
            labels.append(part.labels)
        likely, truth = np.concatenate(likelihoods), np.concatenate(labels)
        name = f"{split}/attentive_probe_{label}"
        scores.append(balanced_accuracy(f"{name}/accuracy", predicted_classes(likely), truth))
        scores.append(area_under_curve(f"{name}/AUC", likely[:, : len(names)], truth))
    return scores


def _fitted(inputs: TaskInputs, max_train: int = MAX_TRAIN) -> tuple[AttentiveProbe, list[str]]:
    label = inputs.corpus.label
    assert label is not None
    modality = inputs.corpus.columns[label]
    assert isinstance(modality, Category)
    train, validation = (LabelledTokens.of(inputs, split, max_train) for split in ("train", "validation"))
    return fit_probe(train, validation, len(modality.names)), list(modality.names)


def plot(inputs: TaskInputs) -> Panels:
    """Test images with the patches that each head of the probe attends to, and the predicted class."""
    probe, names = _fitted(inputs, 1000)
    label = inputs.corpus.label
    assert label is not None
    rows, examples = inputs.reader.read_labelled(inputs.test_splits[0], label, 2 * EXAMPLES)
    if not examples:
        return Panels([[text_panel([f"No test example has a {label}."])]])
    part = LabelledTokens.of(inputs, inputs.test_splits[0], 2 * EXAMPLES)
    predicted = predicted_classes(probabilities(probe, part))
    with torch.no_grad():
        weights = probe.attention(part.tokens, part.mask)
    panels = []
    for number, (row, example) in enumerate(zip(rows.tolist(), examples, strict=True)):
        image = torch.from_numpy(example["image"]).permute(2, 0, 1).float() / 255
        truth, guess = inputs.corpus.value(row, label), int(predicted[number])
        title = clipped(names[guess], lines=1) + ("" if guess == truth else f"\n({clipped(names[truth], 22, 1)})")
        line = [image_panel(image, title, guess == truth)]
        length = int(part.mask[number].sum())
        if math.isqrt(length) ** 2 == length and image.shape[1] == image.shape[2]:
            line += [heat_panel(image, one, f"head {head}") for head, one in enumerate(weights[number, :, :length], 1)]
        panels.append(line)
    return Panels(panels, f"Predicted {label}, and the patches that the heads of the attentive probe attend to")


def _has_training_labels(inputs: TaskInputs) -> bool:
    return all(_has_labels(inputs, split) for split in ("train", "validation"))


def _has_labels(inputs: TaskInputs, split: str) -> bool:
    corpus = inputs.corpus
    return corpus.label is not None and bool(corpus.has(corpus.label)[corpus.splits.get(split, [])].any())


task = Task(
    capability=HasPatchFeatures,
    requires=((Image,),),
    condition=_has_training_labels,
    order=88,
    score=attentive_probe_scores,
    plot=plot,
    metrics={"accuracy": MetricKind(), "AUC": MetricKind()},
    headline=("attentive_probe_*/accuracy",),
    forward_methods=("patch_features",),
)
