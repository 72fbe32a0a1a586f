"""How good are images that a method generates, by the number of its steps?

A small classifier, trained on the corpus's real training images, looks at them: does it see the class that was asked
for, and are its features distributed as those of real test images (Fréchet and kernel distance)?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.label import label_of
from polymodal.data.conditions import conditions
from polymodal.data.loader import Reader
from polymodal.evaluation.classification import balanced_accuracy
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image
from polymodal.training.run import evaluating, to_device
from polymodal.types import Batch, Processor

STEPS = (1, 2, 4, 8, 32)
VALIDATION_STEPS = (1, 8)
BATCH = 128
PASSES = 15  # of the classifier over the training images


@runtime_checkable
class CanGenerateImages(Protocol):
    """Capability: images, normalised as the processor's, for the conditions of a batch, in so many steps."""

    def generate_images(self, batch: Batch, steps: int, generator: torch.Generator | None = None) -> Tensor: ...


class ImageClassifier(nn.Module):
    """Three convolutions, halving the side each time, and a linear layer; its features are what that reads."""

    def __init__(self, classes: int, width: int = 32):
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        self.convolutions = nn.ModuleList(nn.Conv2d(sizes[n], sizes[n + 1], 3, padding=1) for n in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(8, size) for size in sizes[1:])
        self.out = nn.Linear(sizes[-1], classes)

    def features(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            image = F.max_pool2d(F.silu(norm(convolution(image))), 2)
        return image.mean((2, 3))

    def forward(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch classes"]:
        return self.out(self.features(image))


_trained: dict[Any, ImageClassifier] = {}  # one for every corpus and size in this process


def image_classifier(corpus: Corpus, train: Batch) -> ImageClassifier:
    """Trained on the real training images, the same for all methods and seeds."""
    image, label = train["image"], train["label"]
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

    The unit is a generated image: how much more it is alike the other generated ones than the real ones, plus what is
    the same for all images.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (1 + a.double() @ b.double().T / a.shape[1]) ** 3

    own, theirs = kernel(made, made).fill_diagonal_(0), kernel(real, real).fill_diagonal_(0)
    alike = own.sum(1) / (len(made) - 1) - 2 * kernel(made, real).mean(1)
    constant = theirs.sum() / (len(real) * (len(real) - 1))
    return Score(name, (alike + constant).numpy(), higher_is_better=False)


def frechet_distance(name: str, made: Float[Tensor, "images dim"], real: Float[Tensor, "others dim"]) -> Score:
    """Squared distance of the normal distributions with the means and covariances of both (FID, Heusel et al. 2017).

    It grows as samples get fewer, so it compares only what was made of equally many.
    """
    a, b = made.double(), real.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = mean + first.trace() + second.trace() - 2 * cross
    return Score(name, np.array([float(distance.clamp(min=0))]), higher_is_better=False)


def generation_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, steps_asked: Sequence[int] = STEPS
) -> list[Score]:
    """One image for label and text of each image, for several numbers of steps, and the real ones beside."""
    assert isinstance(method, CanGenerateImages)
    train = real_images(processor, reader, "train")
    classifier = image_classifier(reader.corpus, train)
    real = real_images(processor, reader, split)
    labels = real["label"].numpy()
    conditions = {name: value for name, value in real.items() if name != "image"}
    device = next(method.parameters()).device
    scores = []
    with evaluating(method), torch.no_grad():
        of_real = classifier.features(real["image"])
        for steps in steps_asked:
            generator = torch.Generator().manual_seed(0)
            made = method.generate_images(to_device(conditions, device), steps, generator).cpu()
            task = f"{split}/generation_in_{steps}"
            scores.append(balanced_accuracy(f"{task}/accuracy", classifier(made).argmax(1).numpy(), labels))
            scores.append(frechet_distance(f"{task}/frechet_distance", classifier.features(made), of_real))
            scores.append(kernel_distance(f"{task}/kernel_distance", classifier.features(made), of_real))
        seen = classifier(real["image"]).argmax(1).numpy()
        scores.append(balanced_accuracy(f"{split}/real_images/accuracy", seen, labels))
        others = classifier.features(train["image"][: len(labels)])
        scores.append(frechet_distance(f"{split}/real_images/frechet_distance", others, of_real))
    return scores


def real_images(processor: Processor, reader: Reader, split: str) -> Batch:
    """The images of a split with their conditions."""
    _, examples = reader.read_all(reader.corpus.rows(split))
    return processor(image=[example["image"] for example in examples]) | conditions(processor, examples)


def _has_labeled_images(inputs: TaskInputs) -> bool:
    """Whether images have a label that the method takes, so that a classifier can judge generated ones."""
    return inputs.corpus.label is not None and label_of(inputs.processor) is not None


task = Task(
    capability=CanGenerateImages,
    requires=((Image,),),
    condition=_has_labeled_images,
    order=160,
    score=lambda inputs: inputs.over_test_splits(generation_scores),
    validate=lambda inputs: generation_scores(
        inputs.method, inputs.processor, inputs.reader, "validation", VALIDATION_STEPS
    ),
    metrics={"accuracy": MetricKind(), "*_distance": MetricKind("distance", higher_is_better=False)},
    headline=(*(f"generation_in_{steps}/frechet_distance" for steps in (1, 4, 32)), "generation_in_1/accuracy"),
    forward_methods=("generate_images",),
    hint="generate RUN",
)
