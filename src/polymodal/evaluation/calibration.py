"""Calibration of probabilities: whether what a method gives a probability of p happens as often."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from polymodal.evaluation.statistics import Score

BINS = 10  # of equal width


class Reliability(NamedTuple):
    """Of every bin of probabilities: the mean probability, the fraction that happened, and how many there are."""

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    pairs: Int[np.ndarray, " bins"]


def bin_numbers(probabilities: Float[np.ndarray, " pairs"], bins: int = BINS) -> Int[np.ndarray, " pairs"]:
    """Return the bin of each probability; 1 belongs to the last."""
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def reliability(
    probabilities: Float[np.ndarray, " pairs"], truth: Float[np.ndarray, " pairs"], bins: int = BINS
) -> Reliability:
    """Return what a reliability diagram shows (Niculescu-Mizil & Caruana 2005); empty bins have 0."""
    number = bin_numbers(probabilities, bins)
    count, shown = np.bincount(number, minlength=bins), np.bincount(number, minlength=bins).clip(min=1)
    confidence, accuracy = (np.bincount(number, values, bins) / shown for values in (probabilities, truth))
    return Reliability(confidence, accuracy, count)


def calibration_scores(
    name: str, probabilities: Float[np.ndarray, " pairs"], truth: Float[np.ndarray, " pairs"], unit: np.ndarray
) -> list[Score]:
    """Return the expected calibration error (ECE, Guo et al. 2017, equation 3) and the Brier score.

    truth: 1 for what happened, 0 otherwise. unit: for each pair, the number of what the test samples independently. A
    probability that is not a number counts as wrong with certainty.
    """
    probabilities = np.where(np.isfinite(probabilities), probabilities, 1.0 - truth).clip(0, 1)
    number, difference = bin_numbers(probabilities), probabilities - truth
    # ECE = sum over bins of |sum of differences| / pairs: the mean of the differences with the sign of their bin.
    signs = np.sign(np.bincount(number, difference, BINS))[number]
    chance = float(np.mean((truth.mean() - truth) ** 2))
    return [
        Score.per_cluster(f"{name}/ECE", signs * difference, unit, higher_is_better=False),
        Score.per_cluster(f"{name}/Brier", difference**2, unit, chance, higher_is_better=False),
    ]
