"""Analysis of a study of scale: power laws with intervals, signed-rank tests, relative error reduction.

The error of an arm after x examples is fitted by error(x) = alpha x^-c + eps (WebLI-100B, section 4): c says how fast
it falls and eps where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from polymodal.evaluation.statistics import Estimate

MIN_POINTS = 3  # as many as a power law has parameters
RESAMPLES = 200
STARTS = (0.1, 0.3, 1.0, 2.0)  # exponents that the fit begins with
MAX_EXPONENT = 20.0


@dataclass(frozen=True)
class PowerLaw:
    """error(x) = alpha x^-c + eps, all of them at least 0. c, eps: with 95 % intervals, NaN where there is none."""

    alpha: float
    c: Estimate
    eps: Estimate

    def __call__(self, examples: np.ndarray) -> np.ndarray:
        return self.alpha * examples**-self.c.value + self.eps.value


def fit_power_law(examples: Sequence[float] | np.ndarray, errors: Sequence[Sequence[float] | np.ndarray]) -> PowerLaw:
    """Fit a power law by least squares to the mean errors over seeds.

    examples: seen by the model at each point. errors: of each seed at each point. Intervals are Student's, with the
    jackknife's standard error over seeds; of a single seed, percentiles over 200 resamples of the residuals, of which
    three points have none. Raises ValueError with fewer than three points.
    """
    x, y = np.asarray(examples, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if len({*x.tolist()}) < MIN_POINTS:
        raise ValueError(f"a power law is fitted to {MIN_POINTS} points or more")
    alpha, c, eps = _fitted(x, y.mean(0))
    low, high = np.full((2, 3), np.nan)
    if (seeds := len(y)) > 1:
        left_out = np.array([_fitted(x, np.delete(y, seed, 0).mean(0), (c,)) for seed in range(seeds)])
        half = stats.t.ppf(0.975, seeds - 1) * np.sqrt((seeds - 1) * left_out.var(0))
        low, high = (np.maximum(np.array([alpha, c, eps]) + side, 0) for side in (-half, half))
    elif len(x) > MIN_POINTS:
        rng = np.random.default_rng(0)
        fitted = alpha * x**-c + eps
        residuals = (y[0] - fitted) * np.sqrt(len(x) / (len(x) - MIN_POINTS))
        samples = (fitted + rng.choice(residuals, len(x)) for _ in range(RESAMPLES))
        low, high = np.percentile([_fitted(x, sample, (c,)) for sample in samples], [2.5, 97.5], axis=0)
    return PowerLaw(alpha, Estimate(c, float(low[1]), float(high[1])), Estimate(eps, float(low[2]), float(high[2])))


def _fitted(x: np.ndarray, y: np.ndarray, starts: Sequence[float] = STARTS) -> tuple[float, float, float]:
    """alpha, c and eps of the least squares of y; the scale of x is taken out for the fit."""
    scale = float(np.exp(np.log(x).mean()))
    curve: Callable[..., np.ndarray] = lambda u, alpha, c, eps: alpha * u**-c + eps  # noqa: E731
    best: tuple[float, np.ndarray] | None = None
    for start in starts:
        begin = (max(float(np.ptp(y)), 1e-6), start, max(float(y.min()) / 2, 1e-9))
        bounds = ([0.0] * 3, [np.inf, MAX_EXPONENT, np.inf])
        fitted = optimize.least_squares(lambda law: curve(x / scale, *law) - y, begin, bounds=bounds, max_nfev=2000).x
        squares = float(((curve(x / scale, *fitted) - y) ** 2).sum())
        if best is None or squares < best[0]:
            best = squares, fitted
    assert best is not None
    alpha, c, eps = best[1].tolist()
    return alpha * scale**c, c, eps


def signed_rank_test(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test over paired metrics; 1 where all are equal."""
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def relative_error_reduction(before: float, after: float) -> float:
    """Return by which fraction an error has fallen; gains are larger where the error is high."""
    return (before - after) / before if before else 0.0
