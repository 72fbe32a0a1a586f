"""Compare metrics fairly: the same captions, spoilt in the same ways, and thresholds chosen on other pictures."""

from __future__ import annotations

import time
from pathlib import Path

from polymodal.corpora import Corpus
from polymodal.errors import UserError
from polymodal.evaluation.hallucination import hallucination_scores
from polymodal.reproduce.compare import RESULTS, Arm, Comparison, Trial, untrained
from polymodal.training.run import write_json
from polymodal.types import Budget


def compare_metrics(arms: list[Arm], corpus: Corpus, budget: Budget, seeds: int, out: Path | str) -> Comparison:
    """Judge the captions of as many pictures as the budget has examples, at every seed; writes `results.json`."""
    if budget.examples is None:
        raise UserError("A claim about metrics trains nothing; its budget is a number of pictures: 400examples.")
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    trials = []
    for seed in range(seeds):
        for arm in arms:
            began = time.perf_counter()
            scores = hallucination_scores(arm.recipe, corpus, budget.examples, seed)
            run = untrained(arm.recipe, time.perf_counter() - began, 0, budget.examples)
            trials.append(Trial(arm, seed, run, {score.name: score for score in scores}))
    comparison = Comparison(arms, corpus, budget, list(range(seeds)), trials, directory)
    write_json(directory / RESULTS, comparison.to_json())
    return comparison
