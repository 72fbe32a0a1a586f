"""Compare metrics fairly: the same captions, spoilt in the same ways, and thresholds chosen on other pictures."""

from __future__ import annotations

import time
from pathlib import Path

from torch import nn

from polymodal.corpora import Corpus
from polymodal.errors import UserError
from polymodal.evaluation.hallucination import hallucination_scores
from polymodal.reproduce.compare import RESULTS, Arm, Comparison, Trial
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import Run, write_json
from polymodal.training.trainer import command_line
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
            cost = {"seconds": time.perf_counter() - began, "steps": 0, "examples": budget.examples}
            unused = {"parameters": 0, "flops_an_example": 0.0, "skipped": 0}
            record = {"recipe": recipe_record(arm.recipe), "command": command_line()} | cost | unused
            run = Run(arm.recipe, nn.Module(), None, record)  # type: ignore[arg-type]
            trials.append(Trial(arm, seed, run, {score.name: score for score in scores}))
    comparison = Comparison(arms, corpus, budget, list(range(seeds)), trials, directory)
    write_json(directory / RESULTS, comparison.to_json())
    return comparison
