"""The prior P(t) of a caption under a model that writes captions of images: the mean of P(t | i) over images.

VisualGPTScore (Lin et al. 2024, section 4) averages over images of the training distribution (Monte Carlo), or over a
few images of Gaussian noise. All images are read as any others, by the method's processor, and are the same for every
caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import logsumexp

from polymodal.constraints import PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.conversation import DESCRIBE
from polymodal.evaluation.task import TaskInputs
from polymodal.training.run import answers

TRAINING_IMAGES = 32  # with which noise is compared as an estimate of the prior
BATCH = 128  # pairs whose likelihood is computed at once


@dataclass(frozen=True)
class CaptionPrior:
    """How P(t) is estimated: the mean of P(t | i) over images."""

    images: Literal["noise", "training", "candidates"] = "noise"
    """Gaussian noise; images of the training split (Monte Carlo); or the images of the test, which a score should not
    have seen together."""
    count: PositiveInt = 3
    """Number of images; noise needs few, training images many (about 1000)."""
    noise_mean: UnitInterval = 0.4
    """Mean of the noise, on the scale 0-1 of pixels."""
    noise_std: PositiveFloat = 0.25
    """Standard deviation of the noise."""
    mean_of_normalized: bool = False
    """Average P(t | i)^(1/m), as a follow-up does, in place of P(t | i), whose root is then taken."""


def log_likelihoods(inputs: TaskInputs, images: Sequence[Any], texts: Sequence[str]) -> Float[np.ndarray, " pairs"]:
    """log P(t | i) of each text as the caption of its image."""
    columns = {"answer": list(texts), "image": list(images), "question": [DESCRIBE] * len(texts)}
    parts = answers(inputs.method, inputs.processor, "log_likelihood", columns, BATCH)
    return torch.cat(parts).double().numpy()


def token_counts(inputs: TaskInputs, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
    """Tokens of each text with the end token, without the start token; at least 1."""
    tokens = inputs.processor.tokenizer(list(texts))
    return np.maximum(tokens.lengths.numpy() - tokens.special_tokens[0], 1).astype(float)


def prior_images(inputs: TaskInputs, prior: CaptionPrior, candidates: Sequence[Any]) -> list[Any]:
    """The images over which P(t | i) is averaged; always the same ones, as a method's processor reads them.

    candidates: of the test, which noise is as large as. Without a training split, noise stands in for its images.
    """
    if prior.images == "candidates":
        places = np.linspace(0, len(candidates) - 1, min(prior.count, len(candidates))).round().astype(int)
        return [candidates[place] for place in places]
    if prior.images == "training" and (images := _training_images(inputs, prior.count)):
        return images
    return noise_images(np.asarray(candidates[0]).shape, prior)


def _training_images(inputs: TaskInputs, count: int) -> list[Any]:
    """Readable images of the training split, evenly spaced; none without such a split."""
    corpus = inputs.reader.corpus
    if not len(corpus.splits.get("train", ())):
        return []
    return [example["image"] for example in inputs.reader.read_all(corpus.sample("train", count))[1]]


def noise_images(shape: tuple[int, ...], prior: CaptionPrior) -> list[np.ndarray]:
    """Images of Gaussian noise (uint8), which the processor then normalizes as it does others."""
    noise = np.random.default_rng(0).normal(prior.noise_mean, prior.noise_std, size=(prior.count, *shape))
    return list((255 * noise.clip(0, 1)).round().astype(np.uint8))


def log_priors(
    inputs: TaskInputs, texts: Sequence[str], images: Sequence[Any], prior: CaptionPrior
) -> Float[np.ndarray, " texts"]:
    """log P(t) of each text: the logarithm of the mean of P(t | i) over the images."""
    # Image by image, so that texts of a batch are few in number of different lengths, and each image is the same one.
    each = np.stack([log_likelihoods(inputs, [image] * len(texts), texts) for image in images])
    if prior.mean_of_normalized:
        lengths = token_counts(inputs, texts)
        return log_mean_exp(each / lengths) * lengths
    return log_mean_exp(each)


def two_priors(
    inputs: TaskInputs, texts: Sequence[str], candidates: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """log P(t) of each text by noise and by training images; None without training images."""
    if not (images := _training_images(inputs, TRAINING_IMAGES)):
        return None
    noise, training = CaptionPrior(), CaptionPrior("training", TRAINING_IMAGES)
    by_noise = log_priors(inputs, texts, prior_images(inputs, noise, candidates), noise)
    return by_noise, log_priors(inputs, texts, images, training)


def log_mean_exp(values: Float[np.ndarray, "samples texts"]) -> Float[np.ndarray, " texts"]:
    """log of the mean of exp over samples; never less than the mean of the values (Jensen)."""
    return logsumexp(values, axis=0) - np.log(len(values))
