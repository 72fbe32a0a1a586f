"""Means over seeds of scores and of their differences, with intervals that count seeds and test units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from polymodal.evaluation.statistics import Estimate, Score, resampled_values


@dataclass(frozen=True)
class TwoErrors:
    """A mean over seeds, with the standard errors of its two sources of chance and their degrees of freedom.

    The squares of the two half-widths add up, each with its own quantile of Student's t (after Graybill and Wang 1980).
    Adding the variances under one quantile with Welch and Satterthwaite's degrees of freedom does not cover with two or
    three seeds: where the seeds happen to agree, it takes the quantile of the units for both.
    """

    value: float
    seed_error: float
    seed_freedom: float
    unit_error: float
    unit_freedom: float

    def half_width(self, level: float = 0.95) -> float:
        outside = (1 - level) / 2
        return math.hypot(
            _quantile(self.seed_freedom, outside) * self.seed_error,
            _quantile(self.unit_freedom, outside) * self.unit_error,
        )

    def interval(self, level: float = 0.95) -> Estimate:
        half = self.half_width(level)
        return Estimate(self.value, self.value - half, self.value + half)

    def p_value(self, null: float = 0.0) -> float:
        """1 less the level of the largest interval that does not hold `null`; two-sided."""
        distance = abs(self.value - null)
        if distance == 0:
            return 1.0
        if self.seed_error == self.unit_error == 0:
            return 0.0
        low, high = -12.0, 0.0  # decimal logarithms
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if self.half_width(1 - 10**middle) < distance else (middle, high)
        return 10**high


def _quantile(freedom: float, outside: float) -> float:
    return -float(special.stdtrit(freedom, outside)) if freedom > 0 else 0.0


def aggregate_seeds(scores: Sequence[Score]) -> Estimate:
    """The mean over seeds, with an interval that counts two sources of chance: the seed, and the choice of test units.

    scores: one a seed, on the same units. Other arms say nothing about this one: arms that vary less than it would make
    its interval too narrow. One seed gives the interval over the test units alone.
    """
    interval = seed_and_unit_errors(scores).interval()
    return interval.between_0_and_1() if scores[0].is_fraction else interval


def paired_difference(scores: Sequence[Score], baselines: Sequence[Score], level: float = 0.95) -> Estimate:
    """The mean over seeds of score minus baseline, each pair from the same seed and on the same test units."""
    return seed_and_unit_errors(scores, baselines).interval(level)


def seed_and_unit_errors(scores: Sequence[Score], baselines: Sequence[Score] = ()) -> TwoErrors:
    """The mean over seeds of scores, or of their differences to baselines, with both of its errors.

    Where seeds have different numbers of units, because the tests of each are its own, the error of the units is the
    mean of those of the seeds: as if they erred together, which is never too small.
    """
    if len({len(score.clusters) for score in scores}) > 1:
        others = [[other] for other in baselines] or [[] for _ in scores]
        each = [seed_and_unit_errors([score], other) for score, other in zip(scores, others, strict=True)]
        means, freedom = np.array([one.value for one in each]), min(one.unit_freedom for one in each)
        seed_error = float(np.std(means, ddof=1)) / len(each) ** 0.5
        unit_error = float(np.mean([one.unit_error for one in each]))
        return TwoErrors(float(means.mean()), seed_error, len(each) - 1, unit_error, freedom)
    values = np.array([score.value for score in scores])
    if baselines:
        values = values - [score.value for score in baselines]
    seeds, units = len(scores), len(scores[0].clusters)
    seed_error = float(np.std(values, ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    if scores[0].statistic == "median":
        resampled = resampled_values(scores) - (resampled_values(baselines) if baselines else 0.0)
        unit_error = float(np.std(resampled.mean(axis=0), ddof=1))
    else:
        influence = np.mean([score.influence() for score in scores], axis=0)
        if baselines:
            influence = influence - np.mean([score.influence() for score in baselines], axis=0)
        unit_error = float(np.sqrt(np.sum(influence**2) / max(units * (units - 1), 1)))
    return TwoErrors(float(values.mean()), seed_error, seeds - 1, unit_error, units - 1)


def are_copies(scores: Sequence[Score], others: Sequence[Score]) -> bool:
    """Whether two arms have the same units at every seed, as two recipes that do the same."""
    return all(np.array_equal(one.clusters, other.clusters) for one, other in zip(scores, others, strict=True))
