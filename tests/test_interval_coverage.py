"""A short form of `benchmarks/interval_coverage.py`; and units and combinations that do not cover fail it."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from polymodal.evaluation.seeds import aggregate_seeds, paired_difference
from polymodal.evaluation.statistics import Estimate, Score, group_numbers
from polymodal.evaluation.tasks.image_generation import frechet_distance

MIN_COVERAGE, MAX_FALSE_POSITIVES = 0.93, 0.065
SIMULATIONS = 400
ERROR = 2.5 * (0.05 * 0.95 / SIMULATIONS) ** 0.5  # of a rate that is simulated so often

file = Path(__file__).parents[1] / "benchmarks" / "interval_coverage.py"
spec = importlib.util.spec_from_file_location("interval_coverage", file)
assert spec is not None
assert spec.loader is not None
simulation = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulation)


def worst(kind, spreads=(0.0, 0.3), seeds=(2, 3), simulations=SIMULATIONS, **intervals):
    found = simulation.rates(kind, spreads, seeds, simulations, **intervals).values()
    return min(one.coverage for one in found), max(one.false_positives for one in found)


@pytest.mark.parametrize("name", ["accuracy", "AUC, 50 and 50", "AUC, 20 and 80", "average precision"])
def test_intervals_hold_the_truth_and_equal_arms_are_not_told_apart(name):
    coverage, false_positives = worst(simulation.KINDS[name])
    assert coverage >= MIN_COVERAGE - ERROR
    assert false_positives <= MAX_FALSE_POSITIVES + ERROR


def test_the_benchmark_has_every_kind_of_metric():
    assert {"balanced accuracy", "entity F1", "Frechet distance", "mutual information", "median rank"} <= {
        *simulation.KINDS
    }
    assert simulation.SEEDS == (2, 3, 5)
    assert simulation.SPREADS == (0, 0.03, 0.1, 0.3)


def half_of_an_area(rng):
    """The units of an area as they were once: each positive with the negatives held as they are."""
    easy = rng.normal(size=100)

    def run():
        values = 0.7 * easy + 0.7 * rng.normal(size=100)
        positive, negative = 1 + values[:50], values[50:]
        return Score("", (positive[:, None] > negative).mean(1))

    return run


def half_of_a_precision(rng):
    """The units of an average precision as they were once: the fraction of wrong captions below each wrong one."""
    easy = rng.normal(size=200)

    def run():
        values = 0.7 * easy + 0.7 * rng.normal(size=200)
        wrong, right = values[:100], 1 + values[100:]
        lower, lower_right = (wrong <= wrong[:, None]).sum(1), (right <= wrong[:, None]).sum(1)
        return Score("", lower / (lower + lower_right))

    return run


@pytest.mark.parametrize("kind", [half_of_an_area, half_of_a_precision])
def test_units_that_are_half_of_a_statistic_fail(kind):
    # Of one seed, since the width that seeds add hides what units lack.
    coverage, false_positives = worst(kind, spreads=(0.0,), seeds=(1,))
    assert coverage < MIN_COVERAGE - ERROR
    assert false_positives > MAX_FALSE_POSITIVES + ERROR
    whole = simulation.KINDS["AUC, 50 and 50" if kind is half_of_an_area else "average precision"]
    coverage, false_positives = worst(whole, spreads=(0.0,), seeds=(1,))
    assert coverage >= MIN_COVERAGE - ERROR
    assert false_positives <= MAX_FALSE_POSITIVES + ERROR


def added(by_arm: list[list[float]], unit_error: float, units: int) -> Estimate:
    """The combination as it was once: variances added, degrees of freedom of Welch and Satterthwaite; the variance of
    the seeds is the mean of those of all arms, but of those that vary more than the first."""
    seeds = len(by_arm[0])
    variances = [float(np.var(values, ddof=1)) for values in by_arm]
    if seeds > 2:
        limit = special.fdtri(seeds - 1, seeds - 1, 0.95) * variances[0]
        variances = [variances[0], *(one for one in variances[1:] if one <= limit)]
    of_seeds, of_units = float(np.mean(variances)) / seeds, unit_error**2
    freedom = (of_seeds + of_units) ** 2 / (of_seeds**2 / (len(variances) * (seeds - 1)) + of_units**2 / (units - 1))
    half = float(special.stdtrit(freedom, 0.975)) * (of_seeds + of_units) ** 0.5
    mean = float(np.mean(by_arm[0]))
    return Estimate(mean, mean - half, mean + half)


@pytest.mark.parametrize("copies", [0, 1])
def test_variances_that_are_added_or_pooled_fail(copies):
    """copies: arms that are copies of the baseline, whose differences of zero are pooled."""

    def once(scores, baselines):
        differences = [one.value - other.value for one, other in zip(scores, baselines, strict=True)]
        units = np.mean([a.clusters - b.clusters for a, b in zip(scores, baselines, strict=True)], axis=0)
        arms = [differences, *[[0.0] * len(differences)] * copies]
        return added(arms, float(np.std(units, ddof=1)) / len(units) ** 0.5, len(units))

    _, false_positives = worst(simulation.KINDS["accuracy"], (0.1, 0.3), seeds=(2, 3), difference=once)
    assert false_positives > MAX_FALSE_POSITIVES + ERROR
    _, false_positives = worst(simulation.KINDS["accuracy"], (0.1, 0.3), seeds=(2, 3))
    assert false_positives <= MAX_FALSE_POSITIVES + ERROR


def test_questions_of_an_image_as_units_of_their_own_fail():
    def apart(rng):
        image = np.repeat(np.arange(30), 8)
        difficulty = rng.normal(size=30)[image]

        def run():
            right = 0.3 + difficulty + rng.normal(size=30)[image] + 0.3 * rng.normal(size=240) > 0
            return Score("", right.astype(float))

        return run

    def together(rng):
        image = np.repeat(np.arange(30), 8)
        run = apart(rng)
        return lambda: Score.per_cluster("", run().clusters, image)

    assert worst(apart, (0.0,), (2,))[0] < MIN_COVERAGE - ERROR or worst(apart, (0.0,), (1,))[1] > 0.2
    assert worst(together, (0.0,), (1,))[0] >= MIN_COVERAGE - ERROR


def test_a_distance_of_distributions_has_an_interval_over_its_images():
    rng = np.random.default_rng(0)
    real, made = torch.from_numpy(rng.normal(size=(60, 3))), torch.from_numpy(rng.normal(0.5, 1, (60, 3)))
    score = frechet_distance("", made, real, 30)
    left_out = []
    every = group_numbers(60, 30)
    for group in range(30):
        kept = torch.from_numpy(every != group)
        left_out.append(frechet_distance("", made[kept], real[kept], 1).value)
    np.testing.assert_allclose(score.clusters, score.value - 29 * (np.array(left_out) - np.mean(left_out)), atol=1e-9)
    assert len(frechet_distance("", made, real, 1).clusters) == 1
    broken = frechet_distance("", made * torch.nan, real, 30)
    assert np.isnan(broken.value)
    assert np.isnan(paired_difference([broken, score], [score, score]).value), "as many units as other seeds have"
    coverage, false_positives = worst(simulation.KINDS["Frechet distance"], (0.0, 0.1), (2,), 120)
    assert coverage >= 0.9
    assert false_positives <= 0.1


def test_the_interval_of_a_mean_is_that_of_the_library():
    assert simulation.rates.__defaults__ == (aggregate_seeds, paired_difference)
