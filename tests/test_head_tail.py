"""Head and tail of long-tailed tags against plain loops; power laws and signed ranks against their definitions."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from polymodal.corpora.corpus import About, Corpus
from polymodal.curation.alignment import diversity_audit
from polymodal.evaluation.head_tail import imbalance, is_long_tailed, tag_frequencies, tier_scores, tiers
from polymodal.evaluation.scaling import fit_power_law, relative_error_reduction, signed_rank_test
from polymodal.modalities import Category, Text

COUNTS = {"a": 100, "b": 50, "c": 20, "d": 5, "e": 2, "f": 0}


def test_tiers_are_thirds_by_frequency():
    assert tiers(COUNTS) == {"head": {"a", "b"}, "middle": {"c", "d"}, "tail": {"e", "f"}}
    assert tiers({"x": 1, "y": 1}) == {"head": {"x"}, "middle": set(), "tail": {"y"}}
    assert imbalance(COUNTS) == 100
    assert not is_long_tailed({"x": 9, "y": 1})


def test_scores_are_macro_averages_over_values():
    rng = np.random.default_rng(0)
    unit = rng.integers(12, size=60)
    tags, hits = rng.choice(["a", "b", "c", "e"], 60).tolist(), rng.integers(2, size=60).astype(float)
    scores = {score.name: score for score in tier_scores("t", "R@1", hits, tags, unit, 12, COUNTS, 0.1)}
    mean = {tag: np.mean([h for h, t in zip(hits, tags, strict=True) if t == tag]) for tag in {*tags}}
    assert scores["t/head/R@1"].value == pytest.approx((mean["a"] + mean["b"]) / 2)
    assert scores["t/tail/R@1"].value == pytest.approx(mean["e"])  # no query of f
    assert scores["t/tail_minus_head/R@1"].value == pytest.approx(mean["e"] - (mean["a"] + mean["b"]) / 2)
    assert scores["t/disparity/R@1"].value == pytest.approx(max(mean.values()) - min(mean.values()))
    assert not scores["t/disparity/R@1"].higher_is_better
    assert {len(score.clusters) for score in scores.values()} == {12}


def test_intervals_are_those_of_resampled_units():
    """The spread of the units is that of the macro-average when whole units are sampled again, in plain loops."""
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(80), 2)
    tags = [tag for _ in range(80) for tag in ("a", "e")]
    hits = (rng.random(160) < np.tile([0.7, 0.3], 80)).astype(float)
    gap = tier_scores("t", "R@1", hits, tags, unit, 80, {"a": 9, "e": 1, "m": 5})[2]
    resampled = []
    for _ in range(800):
        chosen = rng.integers(80, size=80)
        a, e = (np.mean([hits[2 * one + place] for one in chosen]) for place in (0, 1))
        resampled.append(e - a)
    error = np.std(gap.clusters, ddof=1) / 80**0.5
    assert error == pytest.approx(np.std(resampled), rel=0.15)


def corpus() -> Corpus:
    spoken = ["en"] * 8 + ["sw"] * 2
    texts = [[{"text": f"text {number}", "language": language}] for number, language in enumerate(spoken)]
    table = pa.table({"captions": texts, "kind": ["x"] * 6 + ["y"] * 3 + [None]})
    columns = {"captions": Text({"en": 0.9, "sw": 0.1}), "kind": Category(("x", "y", "z"))}
    return Corpus(About("some", "", "", "", ()), table, columns, {"train": np.arange(10)})


def test_frequencies_are_those_of_training_and_an_audit_says_what_a_filter_loses():
    data = corpus()
    assert tag_frequencies(data) == {"language": {"en": 8, "sw": 2}, "kind": {"x": 6, "y": 3, "z": 0}}
    assert tag_frequencies(replace(data, splits={}))["language"] == {"en": 0, "sw": 0}
    with pytest.MonkeyPatch.context() as patch:  # what is rare is not in a sample of the rows
        patch.setattr(sys.modules[tag_frequencies.__module__], "MAX_COUNTED", 5)
        assert tag_frequencies(data)["language"] == {"en": 4, "sw": 1}
        assert diversity_audit(data, np.array([0, 1, 2, 3, 4, 6, 9]))["language"].lost == ()
        assert diversity_audit(data, np.arange(9))["language"].tail == (0.2, 1 / 9)
    audit = diversity_audit(data, np.arange(6))
    assert audit["language"].lost == ("sw",)
    assert audit["language"].tail == (0.2, 0.0)
    p = np.array([0.8, 0.2])
    assert audit["language"].effective == pytest.approx((np.exp(-(p * np.log(p)).sum()), 1.0))
    assert audit["kind"].lost == ("y",)


def test_a_power_law_is_found_again_with_an_interval_that_holds_it():
    x = np.array([1e3, 3e3, 1e4, 3e4, 1e5, 3e5])
    law = 8 * x**-0.4 + 0.2
    exact = fit_power_law(x, [law])
    assert (exact.alpha, exact.c.value, exact.eps.value) == pytest.approx((8, 0.4, 0.2), rel=1e-3)
    assert exact(x) == pytest.approx(law, rel=1e-4)
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(40):
        noisy = fit_power_law(x, [law + rng.normal(0, 0.01, len(x)) for _ in range(3)])
        held += noisy.c.low < 0.4 < noisy.c.high, noisy.eps.low < 0.2 < noisy.eps.high
    assert held.min() >= 35, "95 % intervals of three seeds hold the truth"
    flat = fit_power_law(x[:3], [[0.3, 0.3, 0.3]])
    assert flat(x) == pytest.approx(0.3, abs=1e-3)
    assert np.isnan(flat.c.low)
    with pytest.raises(ValueError, match="3 points"):
        fit_power_law(x[:2], [law[:2]])


def test_the_signed_rank_test_counts_all_signs():
    before, after = [0.5, 0.4, 0.3, 0.6, 0.2], [0.4, 0.45, 0.1, 0.3, 0.05]
    differences = np.subtract(after, before)
    ranks = np.abs(differences).argsort().argsort() + 1
    observed = ranks[differences > 0].sum()
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in itertools.product((0, 1), repeat=5)
    ]
    tail = np.mean([one <= min(observed, ranks.sum() - observed) for one in sums])
    assert signed_rank_test(before, after) == pytest.approx(min(2 * tail, 1))
    assert signed_rank_test(before, before) == 1
    assert relative_error_reduction(0.5, 0.4) == pytest.approx(0.2)
