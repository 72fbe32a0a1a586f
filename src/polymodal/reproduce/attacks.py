"""Compare attacks fairly: the same models in the same runs, the same pairs, the same bounds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from polymodal.attacks.attack import Attack
from polymodal.attacks.evaluate import Pairs, Ranks, attack_scores, summary
from polymodal.claim import AttackClaim
from polymodal.corpora.corpus import Corpus
from polymodal.evaluation.statistics import Score
from polymodal.reproduce.compare import RESULTS, SCORES, compare, untrained
from polymodal.reproduce.display import Display
from polymodal.reproduce.result import Arm, ComparisonResult, Trial
from polymodal.reproduce.timing import TimedArm, budgets_in_steps
from polymodal.training.run import Run, write_json, write_text
from polymodal.types import Budget


def compare_attacks(
    arms: list[Arm],
    claim: AttackClaim,
    corpus: Corpus,
    budget: Budget,
    seeds: int,
    out: Path | str,
    display: Display | None = None,
) -> ComparisonResult:
    """Train the victims at every seed, attack each of them with every arm, and try what came out on all of them.

    Victims begin at weights of their own: attacks pass easily between models that began alike. Victims and scores in
    `out` are not made again.
    """
    directory = Path(out)
    trained: dict[str, list[Run]] = {}
    victims = [Arm(*one) for one in claim.victims.items()]
    timed = [TimedArm(victim.label, victim.recipe, corpus) for victim in victims]
    with Display([victim.label for victim in victims], [0], budget) as shown:
        budgets = budgets_in_steps(timed, budget, [0], directory, shown)
    for place, victim in enumerate(victims):
        own_seeds = [seed * len(claim.victims) + place for seed in range(seeds)]
        folder = directory / "victims" / victim.folder
        models = compare([victim], corpus, budgets[victim.label], own_seeds, folder, display)
        trained[victim.label] = [trial.run for trial in models.trials]
    trials = []
    for seed in range(seeds):
        runs = {label: trained_runs[seed] for label, trained_runs in trained.items()}
        pairs = Pairs.of(corpus, next(iter(runs.values())), claim.split, claim.examples)
        before = {name: Ranks.of(run, pairs) for name, run in runs.items()}
        for arm in arms:
            folder = directory / "attacks" / arm.folder / f"seed-{seed}"
            trials.append(_trial(arm, runs, corpus, pairs, before, seed, folder))
    comparison = ComparisonResult(arms, corpus, budget, list(range(seeds)), trials, directory)
    write_json(directory / RESULTS, comparison.to_json())
    return comparison


def _trial(
    arm: Arm,
    runs: Mapping[str, Run],
    corpus: Corpus,
    pairs: Pairs,
    before: Mapping[str, Ranks],
    seed: int,
    folder: Path,
) -> Trial:
    attack: Attack = arm.recipe
    kept = folder / SCORES
    if kept.is_file():
        held = json.loads(kept.read_text(encoding="utf-8"))
        scores, seconds = [Score.from_json(score) for score in held["scores"]], held["seconds"]
    else:
        began = time.perf_counter()
        crafted = [attack_scores(attack, source, runs, corpus, pairs, before, seed) for source in runs]
        scores = [score for of_source, _ in crafted for score in of_source]
        scores = [*summary(scores, list(runs)), *scores]
        seconds = time.perf_counter() - began
        folder.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps({"seconds": seconds, "scores": [score.to_json() for score in scores]}))
    # Cost is that of crafting on every model and asking every model; what was trained stands in `victims`.
    run = untrained(attack, seconds, getattr(attack, "num_iters", 0), len(pairs.images), folder)
    return Trial(arm, seed, run, {score.name: score for score in scores})
