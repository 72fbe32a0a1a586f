"""Figures with their uncertainty: from one run by the bootstrap, from several seeds with the spread between them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def differs_from_zero(self) -> bool:
        return self.low > 0 or self.high < 0


Unit = Literal["percent", "rank", "distance", "variances", "bits per byte", "nats per token"]


@dataclass(frozen=True)
class MetricKind:
    """What the values of a metric mean. unit: percent is a value between 0 and 1 that is shown times 100."""

    unit: Unit = "percent"
    higher_is_better: bool = True


def scale(unit: str, value: float) -> tuple[int, int]:
    """The factor that a value is shown with, and its number of digits after the point."""
    if unit == "percent":
        return 100, 1
    return 1, 1 if unit == "rank" or abs(value) >= 10 else 3


def number(unit: str, value: float) -> str:
    """'25.3 %', '12.0' or '0.031': a value as tables show it."""
    factor, digits = scale(unit, value)
    return f"{factor * value:.{digits}f}" + (" %" if unit == "percent" else "")


def axis_label(unit: str) -> str:
    """The label of an axis that shows values of a unit."""
    return "%" if unit == "percent" else unit


@dataclass(frozen=True)
class Score:
    """One figure of one run.

    name: split/task/metric, such as `test/text_to_image/R@10`.
    clusters: the metric on each independent unit of the test (a concept with all of its captions, say); the figure is
    their mean or median.
    weights: of the units in the mean, such as the number of words of a page; None weighs all alike. The mean of nothing
    is 0.
    chance: what guessing gets; None where that has no meaning.
    unit: of the values, which a task sets. headline: position among the scores that tables show, lowest first; None for
    all others.
    """

    name: str
    clusters: np.ndarray
    chance: float | None = None
    higher_is_better: bool = True
    statistic: Literal["mean", "median"] = "mean"
    weights: np.ndarray | None = None
    unit: Unit = "percent"
    headline: int | None = None

    @property
    def value(self) -> float:
        if self.statistic == "median":
            return float(np.median(self.clusters))
        weights = np.ones_like(self.clusters) if self.weights is None else self.weights
        return float(ratio(self.clusters @ weights, weights.sum()))

    def shown(self) -> tuple[str, str, str]:
        """The figure, its interval and what guessing gets, as tables show them."""
        value, low, high = self.estimate()
        factor, digits = scale(self.unit, value)
        chance = "-" if self.chance is None else number(self.unit, self.chance)
        return number(self.unit, value), f"{factor * low:.{digits}f} to {factor * high:.{digits}f}", chance

    def estimate(self) -> Estimate:
        """The figure with its percentile bootstrap interval over the units."""
        low, high = np.percentile(_resampled([self])[0], [2.5, 97.5])
        return Estimate(self.value, float(low), float(high))

    @classmethod
    def per_cluster(
        cls, name: str, values: np.ndarray, unit: np.ndarray, chance: float | None = None, higher_is_better: bool = True
    ) -> Score:
        """The mean of values, of which several belong to a unit, such as all questions about an image.

        unit: for each value, the number of its unit. Every value weighs alike, and those of a unit are drawn together.
        """
        means, counts = means_by_cluster(values, unit)
        return cls(name, means, chance, higher_is_better, weights=counts.astype(float))

    def to_json(self) -> dict[str, Any]:
        """With the units, so that runs can be compared unit by unit later."""
        return {
            "name": self.name,
            "chance": self.chance,
            "higher_is_better": self.higher_is_better,
            "statistic": self.statistic,
            "unit": self.unit,
            "headline": self.headline,
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


def aggregate_seeds(scores: Sequence[Score], alike: Sequence[Sequence[Score]] = ()) -> Estimate:
    """The mean over seeds, with an interval that counts two sources of chance: the seed, and the choice of test units.

    scores: one a seed, on the same units. alike: those of further arms; the spread between seeds is taken to be the
    same in all arms, as in an analysis of variance, so that two seeds of four arms say more about it than two of one;
    `_combined` says which arm is left out.

    The variances of the two sources add up; the degrees of freedom are Welch and Satterthwaite's. One seed gives the
    interval over the test units alone.
    """
    spread = _resampled(scores).mean(axis=0).var()
    by_arm = [[score.value for score in arm] for arm in (scores, *alike)]
    return _combined(by_arm, float(spread), len(scores[0].clusters))


def paired_difference(
    scores: Sequence[Score], baselines: Sequence[Score], alike: Sequence[Sequence[Score]] = ()
) -> Estimate:
    """The mean over seeds of score minus baseline, each pair from the same seed and on the same test units.

    alike: the scores of further arms, whose differences to the baseline are taken to vary as much between seeds.
    """
    ours, theirs = _resampled(scores), _resampled(baselines)
    by_arm = [[one.value - base.value for one, base in zip(arm, baselines, strict=True)] for arm in (scores, *alike)]
    return _combined(by_arm, float((ours - theirs).mean(axis=0).var()), len(scores[0].clusters))


def _resampled(scores: Sequence[Score]) -> np.ndarray:
    """seeds x resamples: the figure of each seed on the same resampled units."""
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


def _combined(by_arm: list[list[float]], unit_variance: float, units: int) -> Estimate:
    """by_arm: values by seed; the first arm is the one to estimate, all that vary alike tell how much seeds vary.

    From three seeds on, an arm that varies more than chance allows (F test, 5 %), such as one that collapses now and
    then, says nothing about the others.
    """
    mean, seeds = float(np.mean(by_arm[0])), len(by_arm[0])
    variances = [float(np.var(values, ddof=1)) for values in by_arm] if seeds > 1 else []
    if seeds > 2:
        largest = special.fdtri(seeds - 1, seeds - 1, 0.95) * variances[0]
        variances = [variances[0], *(one for one in variances[1:] if one <= largest)]
    freedom = len(variances) * (seeds - 1)
    seed_variance = float(np.mean(variances)) / seeds if freedom else 0.0
    variance = seed_variance + unit_variance
    if variance == 0:
        return Estimate(mean, mean, mean)
    weights = seed_variance**2 / max(freedom, 1) + unit_variance**2 / max(units - 1, 1)
    half = float(special.stdtrit(variance**2 / weights, 0.975) * variance**0.5)
    return Estimate(mean, mean - half, mean + half)


def headlines(scores: Iterable[Score]) -> list[Score]:
    """The scores that tables show, the most important first."""
    placed = [(score.headline, score) for score in scores if score.headline is not None]
    return [score for _, score in sorted(placed, key=lambda pair: pair[0])]
