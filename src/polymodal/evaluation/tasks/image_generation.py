"""Quality of generated images, by the number of sampling steps.

A small classifier is trained on the corpus's real training images. Metrics: its accuracy for the requested class, and
distances between the distributions of its features of generated and of real test images (Fréchet and kernel distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.label import label_of
from polymodal.data.conditions import conditions
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.classification import balanced_accuracy, predicted_classes
from polymodal.evaluation.panels import Panels, clipped, image_panel, shown_images, text_panel
from polymodal.evaluation.statistics import MetricKind, Score, group_numbers
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Category, Image
from polymodal.training.run import evaluating, to_device
from polymodal.types import Batch

STEPS = (1, 2, 4, 8, 32)
VALIDATION_STEPS = (1, 8)
BATCH = 128
MAX_PLOTTED, PLOTTED_STEPS = 8, (32, 4, 1)
PASSES = 15  # of the classifier over the training images
IMAGE_GROUPS = 50  # left out in turn for the interval of a Fréchet distance


@runtime_checkable
class CanGenerateImages(Protocol):
    """Capability: images, normalised as the processor's, for the conditions of a batch, in so many steps."""

    def generate_images(self, batch: Batch, steps: int, generator: torch.Generator | None = None) -> Tensor: ...


def is_unconditional(method: Any) -> bool:
    """Return whether a method generates images from nothing; its batches have `num_images` in place of conditions."""
    return bool(getattr(method, "unconditional", False))


class ImageClassifier(nn.Module):
    """Three convolutions, halving the side each time, down to one pixel, and a linear layer; features are its input."""

    def __init__(self, classes: int, width: int = 32):
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        self.convolutions = nn.ModuleList(nn.Conv2d(sizes[n], sizes[n + 1], 3, padding=1) for n in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(8, size) for size in sizes[1:])
        self.out = nn.Linear(sizes[-1], classes)

    def features(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            image = F.silu(norm(convolution(image)))
            if image.shape[-1] > 1:
                image = F.max_pool2d(image, 2)
        return image.mean((2, 3))

    def forward(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch classes"]:
        return self.out(self.features(image))


_trained: dict[Any, ImageClassifier] = {}  # one for every corpus and size in this process


def image_classifier(
    corpus: Corpus, image: Float[Tensor, "images 3 size size"], label: Int[Tensor, " images"]
) -> ImageClassifier:
    """Trained on the real training images, the same for all methods and seeds."""
    key = (corpus.about.folder, tuple(image.shape), float(image.sum()))
    if key not in _trained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            classifier = ImageClassifier(1 + int(label.max()))
            optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3, weight_decay=0.05)
            for _ in range(PASSES):
                for rows in torch.randperm(len(image)).split(BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(classifier(image[rows]), label[rows]).backward()
                    optimizer.step()
        _trained[key] = classifier.eval()
    return _trained[key]


def kernel_distance(name: str, made: Float[Tensor, "images dim"], real: Float[Tensor, "others dim"]) -> Score:
    """Squared maximum mean discrepancy under the kernel (1 + x·y / dim)³, without bias (KID, Bińkowski et al. 2018).

    Of equally many images, the unit is a generated one with the real one whose conditions it has, and its influence is
    that on the sums over pairs, each of which has it twice (a U-statistic, Hoeffding 1948). Otherwise it is a generated
    one, and the real ones are taken as given.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (1 + a.double() @ b.double().T / a.shape[1]) ** 3

    of_made, theirs = kernel(made, made).fill_diagonal_(0), kernel(real, real).fill_diagonal_(0)
    alike, alike_real, between = of_made.sum(1) / (len(made) - 1), theirs.sum(1) / (len(real) - 1), kernel(made, real)
    value = float(alike.mean() + alike_real.mean() - 2 * between.mean())
    influence = 2 * (alike - between.mean(1))
    if len(made) == len(real):
        influence += 2 * (alike_real - between.mean(0))
    return Score.from_influence(name, value, influence.numpy(), higher_is_better=False)


def frechet_distance(
    name: str, made: Float[Tensor, "images dim"], real: Float[Tensor, "others dim"], groups: int = IMAGE_GROUPS
) -> Score:
    """Squared distance of the normal distributions with the means and covariances of both (FID, Heusel et al. 2017).

    It grows as samples get fewer, so it compares only what was made of equally many. groups: parts of the images, each
    generated one with the real one whose conditions it has, that are left out in turn for the interval; with 1 there is
    no interval. Images that are no numbers have no distance.
    """
    groups = min(groups, len(made) // 2, len(real) // 2)
    if not (made.isfinite().all() and real.isfinite().all()):
        return Score(name, np.full(max(groups, 1), np.nan), higher_is_better=False)  # as many units as other seeds have
    whole = [one.double() for one in (made, real)]
    value = float(_frechet(*(m[None] for one in whole for m in (one.mean(0), torch.cov(one.T)))))
    if groups < 2:
        return Score(name, np.array([value]), higher_is_better=False)
    left_out = _frechet(*(moment for one in whole for moment in _moments_without(one, groups)))
    return Score.from_jackknife(name, value, left_out.numpy(), higher_is_better=False)


def _moments_without(
    images: Float[Tensor, "images dim"], groups: int
) -> tuple[Float[Tensor, "groups dim"], Float[Tensor, "groups dim dim"]]:
    """Means and covariances of the images outside each group."""
    members = F.one_hot(torch.from_numpy(group_numbers(len(images), groups)), groups).double().T
    centered = images - images.mean(0)  # so that sums of squares lose no digits
    count = len(images) - members.sum(1)
    mean = -(members @ centered) / count[:, None]
    inside = torch.stack([centered[group].T @ centered[group] for group in members.bool()])
    outside = centered.T @ centered - inside - count[:, None, None] * mean[:, :, None] * mean[:, None]
    return mean + images.mean(0), outside / (count - 1)[:, None, None]


def _frechet(
    mean: Float[Tensor, "groups dim"],
    covariance: Float[Tensor, "groups dim dim"],
    other_mean: Float[Tensor, "groups dim"],
    other_covariance: Float[Tensor, "groups dim dim"],
) -> Float[Tensor, " groups"]:
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()[:, None] @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum(1)
    traces = (covariance + other_covariance).diagonal(dim1=1, dim2=2).sum(1)
    return ((mean - other_mean).square().sum(1) + traces - 2 * cross).clamp(min=0)


def generation_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, num_steps: Sequence[int] = STEPS
) -> list[Score]:
    """One image for label and text of each image, for several numbers of steps, and real training images beside.

    The real ones have the classes of those that they are compared with, as the generated ones have. Of unconditional
    generation, there is no accuracy, and they are sampled from all.
    """
    assert isinstance(method, CanGenerateImages)
    train, real = real_images(processor, reader, "train"), real_images(processor, reader, split)
    train_labels, labels = (
        classes_of(processor, reader, batch, part) for batch, part in ((train, "train"), (real, split))
    )
    classifier = image_classifier(reader.corpus, train["image"], train_labels)
    conditional = label_of(processor) is not None
    conditions = {name: value for name, value in real.items() if name != "image"}
    device = next(method.parameters()).device
    groups = 1 if split == "validation" else IMAGE_GROUPS  # curves have no intervals
    scores = []
    with evaluating(method), torch.no_grad():
        of_real = classifier.features(real["image"])
        for steps in num_steps:
            generator = torch.Generator().manual_seed(0)
            made = method.generate_images(to_device(conditions, device), steps, generator).cpu()
            task = f"{split}/generation_in_{steps}"
            if conditional:
                predicted = predicted_classes(classifier(made).numpy())
                scores.append(balanced_accuracy(f"{task}/accuracy", predicted, labels.numpy()))
            scores.append(frechet_distance(f"{task}/frechet_distance", classifier.features(made), of_real, groups))
            scores.append(kernel_distance(f"{task}/kernel_distance", classifier.features(made), of_real))
        seen = classifier(real["image"]).argmax(1).numpy()
        scores.append(balanced_accuracy(f"{split}/real_images/accuracy", seen, labels.numpy()))
        rows = rows_of_classes(train_labels, labels) if conditional else rows_of_classes(0 * train_labels, 0 * labels)
        others = classifier.features(train["image"][rows])
        scores.append(frechet_distance(f"{split}/real_images/frechet_distance", others, of_real, groups))
    return scores


def real_images(processor: Processor, reader: Reader, split: str) -> Batch:
    """The images of a split with their conditions."""
    _, examples = reader.read_all(reader.corpus.rows(split))
    return processor(image=[example["image"] for example in examples]) | conditions(processor, examples)


def classes_of(processor: Processor, reader: Reader, batch: Batch, split: str) -> Int[Tensor, " images"]:
    """Return the class of each image of `real_images`, by the corpus where the method takes no labels."""
    if label_of(processor) is not None:
        return batch["label"]
    corpus = reader.corpus
    assert corpus.label is not None
    readable, _ = reader.read_all(corpus.rows(split))
    return torch.tensor([corpus.value(row, corpus.label) for row in readable.tolist()])


def rows_of_classes(labels: Int[Tensor, " images"], wanted: Int[Tensor, " others"]) -> Int[Tensor, " others"]:
    """Sample an image of each wanted class: different ones, unless a class has fewer than are wanted."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros_like(wanted)
    for label in wanted.unique():
        places, candidates = (wanted == label).nonzero()[:, 0], (labels == label).nonzero()[:, 0]
        if not len(candidates):  # a class that training has not
            candidates = torch.arange(len(labels))
        order = candidates[torch.randperm(len(candidates), generator=generator)]
        rows[places] = order.repeat(-(-len(places) // len(order)))[: len(places)]
    return rows


def plot(inputs: TaskInputs) -> Panels:
    """Images for the conditions of test images, in few and in many steps, and the test images themselves."""
    rows, examples = inputs.test_examples(MAX_PLOTTED)
    given = conditions(inputs.processor, examples)
    device = next(inputs.method.parameters()).device
    label, image = inputs.corpus.label, inputs.processor.image
    assert label is not None
    modality = inputs.corpus.columns[label]
    assert isinstance(modality, Category)
    names = [clipped(modality.names[inputs.corpus.value(row, label)], 16, 1) for row in rows.tolist()]
    lines = []
    with evaluating(inputs.method), torch.no_grad():
        for steps in PLOTTED_STEPS:
            generator = torch.Generator().manual_seed(0)
            made = inputs.method.generate_images(to_device(given, device), steps, generator).cpu()  # type: ignore[operator]
            panels = [image_panel(one) for one in image.shown(made)]
            lines.append([text_panel([f"{steps} step{'s' * (steps > 1)}"]), *panels])
    real = shown_images([example["image"] for example in examples])
    lines.append([text_panel(["real"]), *(image_panel(one, name) for one, name in zip(real, names, strict=True))])
    return Panels(lines[::-1], "Generated images", (0.5, *[0.7] * len(rows)), 0.7)


def _has_labeled_images(inputs: TaskInputs) -> bool:
    """Whether images have labels, by which a classifier can judge what is generated from them, or from nothing."""
    labelled = label_of(inputs.processor) is not None or is_unconditional(inputs.method)
    return inputs.corpus.label is not None and labelled


task = Task(
    capability=CanGenerateImages,
    requires=((Image,),),
    condition=_has_labeled_images,
    order=160,
    score=lambda inputs: inputs.over_test_splits(generation_scores),
    validate=lambda inputs: generation_scores(
        inputs.method, inputs.processor, inputs.reader, "validation", VALIDATION_STEPS
    ),
    plot=plot,
    metrics={"accuracy": MetricKind(), "*_distance": MetricKind("distance", higher_is_better=False)},
    headline=(*(f"generation_in_{steps}/frechet_distance" for steps in (1, 4, 32)), "generation_in_1/accuracy"),
    forward_methods=("generate_images",),
    hint="generate RUN",
)
