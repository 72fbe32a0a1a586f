"""Scores with their uncertainty: of one run over the test units, of several seeds over seeds and test units.

The unit of a score is what the test set samples independently, such as an image with all of its captions. A score that
is a mean (or a ratio of sums) of units has the values of the units. A score that is not, such as an area under a ROC
curve, an average precision or a Fréchet distance, has its value plus the influence of each unit on it: from a formula
(`Score.from_influence`), or from leaving out parts of the units (`Score.from_jackknife`). So every score is a mean of
units, and the spread of the units says how far it is from what other test units would give.

`benchmarks/interval_coverage.py` simulates how often the intervals hold the truth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from polymodal.evaluation.units import number, scale
from polymodal.notebook import html_table

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def differs_from_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def between_0_and_1(self) -> Estimate:
        """With the part of the interval where a fraction can be; it covers as often."""
        low, high = (min(max(end, 0.0), 1.0) if math.isfinite(end) else end for end in self[1:])
        return Estimate(self.value, low, high)


Unit = Literal["percent", "rank", "distance", "variances", "bits per byte", "nats", "nats per token", "CIDEr"]


@dataclass(frozen=True)
class MetricKind:
    """What the values of a metric mean. unit: percent is a value that is shown times 100.

    is_fraction: the value lies between 0 and 1, as those in percent do but gains and error rates.
    """

    unit: Unit = "percent"
    higher_is_better: bool = True
    is_fraction: bool = True


@dataclass(frozen=True)
class Score:
    """One score of one run.

    name: split/task/metric, such as `test/text_to_image/R@10`.
    clusters: the metric on each independent unit of the test (a concept with all of its captions, say), or the score
    plus the unit's influence on it; the score is their mean or median.
    weights: of the units in the mean, such as the number of words of a page; None weighs all alike. The mean of nothing
    is 0.
    chance: the value at chance level; None where that has no meaning.
    unit: of the values, which a task sets. headline: position among the scores that tables show, lowest first; None for
    all others. is_fraction: the value lies between 0 and 1, and so does its interval.
    """

    name: str
    clusters: np.ndarray
    chance: float | None = None
    higher_is_better: bool = True
    statistic: Literal["mean", "median"] = "mean"
    weights: np.ndarray | None = None
    unit: Unit = "percent"
    headline: int | None = None
    is_fraction: bool = False

    @property
    def value(self) -> float:
        if self.statistic == "median":
            return float(np.median(self.clusters))
        weights = np.ones_like(self.clusters) if self.weights is None else self.weights
        return float(ratio(self.clusters @ weights, weights.sum()))

    def __repr__(self) -> str:
        value, interval, chance = self.shown()
        return f"{self.name}: {value} [{interval}], chance {chance}, {len(self.clusters):,} units"

    def _repr_html_(self) -> str:
        return html_table(self.name, ("value", "95 % interval", "chance"), [self.shown()])

    def shown(self) -> tuple[str, str, str]:
        """The value, its interval and the chance level, as tables show them."""
        value, low, high = self.estimate()
        factor, digits = scale(self.unit, value)
        chance = "-" if self.chance is None else number(self.unit, self.chance)
        return number(self.unit, value), f"{factor * low:.{digits}f} to {factor * high:.{digits}f}", chance

    def estimate(self) -> Estimate:
        """The value with its percentile bootstrap interval over the units."""
        if not len(self.clusters):
            return Estimate(self.value, self.value, self.value)
        low, high = np.percentile(resampled_values([self])[0], [2.5, 97.5])
        estimate = Estimate(self.value, float(low), float(high))
        return estimate.between_0_and_1() if self.is_fraction else estimate

    @classmethod
    def per_cluster(
        cls, name: str, values: np.ndarray, unit: np.ndarray, chance: float | None = None, higher_is_better: bool = True
    ) -> Score:
        """The mean of values, of which several belong to a unit, such as all questions about an image.

        unit: for each value, the number of its unit. Every value weighs alike, and those of a unit are drawn together.
        """
        means, counts = means_by_cluster(values, unit)
        return cls(name, means, chance, higher_is_better, weights=counts.astype(float))

    @classmethod
    def from_influence(
        cls,
        name: str,
        value: float,
        influence: np.ndarray,
        chance: float | None = None,
        higher_is_better: bool = True,
    ) -> Score:
        """A score that is no mean of units. influence: of each unit; the score's variance is that of their mean."""
        return cls(name, value + influence - np.mean(influence), chance, higher_is_better)

    @classmethod
    def from_jackknife(
        cls,
        name: str,
        value: float,
        left_out: np.ndarray,
        chance: float | None = None,
        higher_is_better: bool = True,
    ) -> Score:
        """A score that is no mean of units. left_out: its value without each unit, or without each group of units.

        With fewer than two parts it has one unit, which no verdict takes for an interval.
        """
        if len(left_out) < 2:
            return cls(name, np.array([value]), chance, higher_is_better)
        return cls.from_influence(name, value, -(len(left_out) - 1) * left_out, chance, higher_is_better)

    def influence(self) -> np.ndarray:
        """By how much each unit moves the mean, times the number of units; 0 on average (of a mean, not a median)."""
        if self.weights is None:
            return self.clusters - self.clusters.mean()
        whole = self.weights.sum()
        return self.weights * (self.clusters - self.value) * (len(self.weights) / whole if whole > 0 else 0.0)

    def to_json(self) -> dict[str, Any]:
        """With the units, so that runs can be compared unit by unit later."""
        return {
            "name": self.name,
            "chance": self.chance,
            "higher_is_better": self.higher_is_better,
            "statistic": self.statistic,
            "unit": self.unit,
            "headline": self.headline,
            "is_fraction": self.is_fraction,
            "clusters": [round(float(unit), 6) for unit in self.clusters],
        } | ({} if self.weights is None else {"weights": self.weights.tolist()})

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Score:
        arrays: dict[str, Any] = {name: np.array(record[name]) for name in ("clusters", "weights") if name in record}
        return cls(**record | arrays)


def means_by_cluster(values: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each unit's values, and how many it has. unit: for each value, the number of its unit."""
    _, places, counts = np.unique(unit, return_inverse=True, return_counts=True)
    return np.bincount(places, values, len(counts)) / counts, counts


def group_numbers(units: int, groups: int) -> np.ndarray:
    """For each unit, the number of the group that it is left out with: at random, and of sizes that differ by one."""
    return np.random.default_rng(0).permutation(units) % max(min(groups, units), 1)


def resampled_values(scores: Sequence[Score]) -> np.ndarray:
    """seeds x resamples: the value of each seed on the same resampled units."""
    units = np.stack([score.clusters for score in scores])
    chosen, times = _resamples(units.shape[1])
    if scores[0].statistic == "median":
        return np.stack([np.median(values[chosen], axis=1) for values in units])
    weights = np.stack([np.ones_like(units[0]) if score.weights is None else score.weights for score in scores])
    return ratio((units * weights) @ times.T, weights @ times.T)


def ratio(part: Any, whole: Any) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


@functools.lru_cache(maxsize=8)
def _resamples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """resamples x units, twice: which units each resample has, and how many times it has each unit."""
    chosen = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    times = np.zeros((RESAMPLES, count))
    np.add.at(times, (np.arange(RESAMPLES)[:, None], chosen), 1)
    return chosen, times


def headlines(scores: Iterable[Score]) -> list[Score]:
    """The scores that tables show, the most important first."""
    placed = [(score.headline, score) for score in scores if score.headline is not None]
    return [score for _, score in sorted(placed, key=lambda pair: pair[0])]
