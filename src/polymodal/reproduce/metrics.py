"""Compare metrics fairly: the same captions, spoilt in the same ways, and thresholds chosen on other images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.evaluation.hallucination import hallucination_scores
from polymodal.evaluation.statistics import Score
from polymodal.reproduce.compare import RESULTS, untrained
from polymodal.reproduce.result import Arm, ComparisonResult, Trial
from polymodal.training.run import write_json
from polymodal.types import Budget


def compare_metrics(arms: list[Arm], corpus: Corpus, budget: Budget, seeds: int, out: Path | str) -> ComparisonResult:
    """Judge the captions of as many images as the budget has examples, at every seed; writes `results.json`."""
    if budget.examples is None:
        raise UserError("A claim about metrics trains nothing; its budget is a number of images: 400examples.")
    max_images = budget.examples
    return score_untrained(
        arms, corpus, budget, seeds, out, lambda recipe, seed: hallucination_scores(recipe, corpus, max_images, seed)
    )


def score_untrained(
    arms: list[Arm],
    corpus: Corpus,
    budget: Budget,
    seeds: int,
    out: Path | str,
    scores_of: Callable[[Any, int], list[Score]],
) -> ComparisonResult:
    """A comparison of recipes that train nothing; writes `results.json`. scores_of: of a recipe at a seed, all of
    them fractions.
    """
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    trials = []
    for seed in range(seeds):
        for arm in arms:
            began = time.perf_counter()
            scores = scores_of(arm.recipe, seed)
            run = untrained(arm.recipe, time.perf_counter() - began, 0, budget.examples or 0)
            trials.append(Trial(arm, seed, run, {score.name: replace(score, is_fraction=True) for score in scores}))
    comparison = ComparisonResult(arms, corpus, budget, list(range(seeds)), trials, directory)
    write_json(directory / RESULTS, comparison.to_json())
    return comparison
