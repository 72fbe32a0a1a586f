"""Verdicts: what the deciding metrics of a claim say, and when they say nothing.

A deciding metric is in favor when the whole 95 % interval of the paired difference lies on the claimed side of zero (or
of the margin that the claim allows), and against when it lies on the other side. A claim of several deciding metrics is
supported when all are in favor, each at 95 %: an intersection-union test, which needs no correction. It is contradicted
when one of them is against at 95 % corrected for their number, since each of them has the occasion.

There is no verdict
- with fewer than three seeds, or a test of one unit, since neither has an interval that covers;
- where the treatment is a copy of the baseline: the same scores on every test unit at every seed, by all metrics; or
  where it is equal to it by a deciding metric that asks for an improvement;
- where a score is no number;
- where the arm that would be the better one is not above chance: its interval has to clear it. That is the treatment
  for "supported", the baseline for "contradicted", and either of them for "not supported at this scale". The worse arm
  may be at chance, as a baseline is that cannot see what the treatment sees: it is then better than guessing that is
  shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from polymodal.evaluation.multiple_comparisons import holm
from polymodal.evaluation.statistics import Estimate
from polymodal.reproduce.result import Arm, ComparisonResult

Verdict = Literal["supported", "contradicted", "not supported at this scale", "no verdict"]
MIN_SEEDS = 3


def verdict(difference: Estimate, higher_is_better: bool = True, margin: float = 0.0) -> Verdict:
    """What one interval says: supported when all of it lies on the claimed side, contradicted when on the other.

    margin: by how much the treatment may be worse, in the metric's own values.
    """
    low, high = _claimed(difference, higher_is_better)
    if low > 0 or (margin > 0 and low > -margin):
        return "supported"
    return "contradicted" if high < -margin else "not supported at this scale"


def _claimed(difference: Estimate, higher_is_better: bool) -> tuple[float, float]:
    """The interval in the direction that is claimed."""
    return (difference.low, difference.high) if higher_is_better else (-difference.high, -difference.low)


@dataclass(frozen=True)
class Evidence:
    """What a comparison says by one deciding metric.

    difference: of the treatment to the baseline, with its 95 % interval; corrected: with that whose level is corrected
    for the number of deciding metrics. units: of the test.
    """

    metric: str
    higher_is_better: bool
    margin: float
    chance: float | None
    units: int
    copy: bool
    difference: Estimate
    corrected: Estimate
    baseline: Estimate
    treatment: Estimate

    @classmethod
    def of(cls, comparison: ComparisonResult, metric: str, margin: float, deciding: int) -> Evidence:
        """deciding: how many metrics decide."""
        baseline, treatment, *_ = comparison.arms
        return cls(
            metric=metric,
            higher_is_better=comparison.higher_is_better(metric),
            margin=margin,
            chance=comparison.chance(metric),
            units=comparison.test_units(metric),
            copy=comparison.is_copy(treatment),
            difference=comparison.difference(treatment, metric),
            corrected=comparison.difference(treatment, metric, level=1 - 0.05 / deciding),
            baseline=comparison.estimate(baseline, metric),
            treatment=comparison.estimate(treatment, metric),
        )

    def to_json(self) -> dict[str, Any]:
        return {name: value._asdict() if isinstance(value, Estimate) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Evidence:
        ends = ("difference", "corrected", "baseline", "treatment")
        return cls(**{**record, **{name: Estimate(**record[name]) for name in ends}})

    @property
    def in_favor(self) -> bool:
        return verdict(self.difference, self.higher_is_better, self.margin) == "supported"

    @property
    def against(self) -> bool:
        return verdict(self.corrected, self.higher_is_better, self.margin) == "contradicted"

    @property
    def left_open(self) -> float:
        """The largest improvement that the interval holds, in the metric's own values; at least 0."""
        return max(_claimed(self.difference, self.higher_is_better)[1], 0.0)

    def clears_chance(self, estimate: Estimate) -> bool:
        """Whether the whole interval of an arm is better than guessing; also where chance is not known."""
        if self.chance is None:
            return True
        return estimate.low > self.chance if self.higher_is_better else estimate.high < self.chance

    def missing(self, seeds: int) -> str:
        """Why there is no verdict by this metric; '' where there is one."""
        ends = (*self.difference, *self.baseline, *self.treatment)
        if not all(map(math.isfinite, ends)):
            return f"{self.metric} is not a number"
        if seeds < MIN_SEEDS:
            return f"{seeds} seed{'s' * (seeds != 1)}, and a verdict needs {MIN_SEEDS}"
        if self.copy:
            return "the treatment is a copy of the baseline"
        if self.units < 2:
            return f"{self.metric} has a single test unit"
        if self.difference == (0, 0, 0) and not self.margin:
            return f"by {self.metric} both arms are equal on every test unit"
        treatment, baseline = self.clears_chance(self.treatment), self.clears_chance(self.baseline)
        if self.against and not baseline:
            return f"the baseline is not above chance by {self.metric}"
        if self.in_favor and not self.margin and not treatment:
            return f"the treatment is not above chance by {self.metric}"
        if not treatment and not baseline:
            return f"neither arm is above chance by {self.metric}"
        return ""


@dataclass(frozen=True)
class Decision:
    """A verdict. why: there is none. left_open: by metric, the largest improvement that is left open where it was not
    found.
    """

    verdict: Verdict
    why: str = ""
    left_open: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(evidence: Sequence[Evidence], seeds: int) -> Decision:
    """The verdict on the conjunction of all parts."""
    reasons = dict.fromkeys(reason for one in evidence if (reason := one.missing(seeds)))
    if reasons:
        return Decision("no verdict", "; ".join(reasons))
    if any(one.against for one in evidence):
        return Decision("contradicted")
    if all(one.in_favor for one in evidence):
        return Decision("supported")
    return Decision(
        "not supported at this scale", left_open={one.metric: one.left_open for one in evidence if not one.in_favor}
    )


def corrected_p_values(
    comparison: ComparisonResult, metrics: Sequence[str], deciding: Sequence[str]
) -> dict[tuple[str, str], float]:
    """By metric and arm, Holm's p-values of all differences to the baseline that do not decide; copies have none."""
    treatment = comparison.arms[1]

    def is_secondary(arm: Arm, metric: str) -> bool:
        decides = arm == treatment and metric in deciding
        return not decides and comparison.arms[0] in comparison.having(metric) and not comparison.is_copy(arm)

    return holm(
        {
            (metric, arm.label): comparison.p_value(arm, metric)
            for metric in metrics
            for arm in comparison.having(metric)
            if arm != comparison.arms[0] and is_secondary(arm, metric)
        }
    )
