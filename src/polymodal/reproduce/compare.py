"""Compare methods fairly: the same data in the same order, the same budget, paired seeds, one table.

Each arm runs once a seed. At a seed all arms start from the same weights wherever names and shapes agree, see the
examples in the same order, and are scored on the same test units, so that differences are paired. A budget in seconds
becomes steps of each arm before the first run (`reproduce.timing`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.registry import reopen
from polymodal.corpora.saved import is_saved, open_saved
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError, check_writable
from polymodal.evaluation import Score, evaluate, validation
from polymodal.reproduce.display import Display, ProgressReporter
from polymodal.reproduce.parallel import Job, run_in_parallel
from polymodal.reproduce.result import Arm, ComparisonResult, Trial
from polymodal.reproduce.timing import START, TimedArm, budgets_in_steps
from polymodal.training import Interrupted, Run, train
from polymodal.training.folder_lock import writes
from polymodal.training.initialization import random_weights, recipe_started_from
from polymodal.training.recipe_file import user_file
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import write_json, write_text
from polymodal.training.trainer import command_line
from polymodal.training.validation import VALIDATIONS
from polymodal.types import Budget

SCORES, RESULTS, REPORT = "scores.json", "results.json", "report.html"
MADE = "made"  # what the start makes for all arms


@dataclass(frozen=True)
class Start:
    """What all arms of a comparison begin with: a recipe that is trained first, once a seed.

    makes: the corpus that arms are trained on (`types.Claim.start_makes`); by default the comparison's own.
    scored: whether its own figures are wanted, too. weights: whether arms begin with its weights and its tokenizer, or
    with fresh ones. tests: whether arms are validated and scored on what it makes, too, whose evaluation splits are the
    same at every seed.
    """

    recipe: Any
    budget: Budget
    makes: Callable[[Any, Corpus, Path, int], Corpus] | None = None
    scored: bool = False
    weights: bool = True
    tests: bool = False


def untrained(recipe: Any, seconds: float, steps: int, examples: int, directory: Path | None = None) -> Run:
    """What stands for the run of an arm that trains nothing, such as an attack or a metric: its recipe and its cost."""
    cost = {"seconds": seconds, "steps": steps, "examples": examples}
    unused = {"parameters": 0, "flops_an_example": 0.0, "skipped": 0}
    record = {"recipe": recipe_record(recipe), "command": command_line()} | cost | unused
    return Run(recipe, torch.nn.Module(), None, record, directory=directory)  # type: ignore[arg-type]


@writes("out")
def compare(
    arms: Sequence[Arm | Any],
    corpus: Corpus,
    budget: Budget,
    seeds: int | Sequence[int] = 3,
    out: Path | str | None = None,
    display: Display | None = None,
    start: Start | None = None,
    jobs: int = 1,
    trust_code: bool = False,
    steps: Mapping[str, int] | None = None,
    budget_fractions: Mapping[str, float] = MappingProxyType({}),
    validations: int = VALIDATIONS,
) -> ComparisonResult:
    """Train and score every arm at every seed; finished runs in `out` are not run again.

    arms: `Arm`s, or recipes, which are then named after their file.
    budget: of a run; seconds are turned into steps once, the same for every seed, which `out` keeps in `steps.json`.
    out: a folder for the runs, `results.json` and `report.html`; without it nothing is written.
    start: what all arms begin with at a seed, in place of fresh weights.
    jobs: how many runs are under way at a time, each in a process of its own with an equal part of the cores, or on the
    next of several GPUs; needs `out`, and a corpus that its `choices` open again.
    trust_code: of finished runs in `out`, see `load_run`.
    steps: of each arm by its label, in place of those that the budget would give (`timing.recorded_steps`).
    budget_fractions: of the budget, for arms that train for less of it, by label. validations: of each run, evenly over
    its budget; they change no result, and their time does not count.
    Raises UserError for fewer than one arm, two arms of the same name, or a folder that holds other runs.
    """
    named = _named_arms(arms)
    every = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    directory = Path(out) if out is not None else None
    if directory is not None:
        check_writable(directory)
    if jobs < 1:
        raise UserError("--jobs is at least 1.")
    if jobs > 1 and directory is None:
        raise UserError("Several jobs need a folder for their runs; give out.")
    plan = _Plan(named, {}, start, directory, trust_code, dict(budget_fractions), validations)
    display = display or Display([START] * (start is not None) + [arm.label for arm in named], every, budget)
    trials, starts = [], []
    with display, tempfile.TemporaryDirectory() as unkept:
        plan = plan.in_steps(corpus, budget, every, display, Path(unkept), jobs, steps)
        with _resumable(directory):
            if jobs > 1:
                plan.side_by_side(corpus, every, jobs, display)
            for seed in every:
                begin = plan.beginning(corpus, seed, display, Path(unkept))
                starts.append(begin.scores)
                trials += [plan.trial(arm, corpus, seed, begin, display) for arm in named]
    started = plan.budgets[START].steps if start is not None else None
    comparison = ComparisonResult(named, corpus, budget, every, trials, directory, started, starts)
    if directory is not None:
        from polymodal.reproduce.report import report  # matplotlib and jinja2 are slow to import

        write_json(directory / RESULTS, comparison.to_json())
        write_text(directory / REPORT, report(comparison))
    return comparison


def _named_arms(arms: Sequence[Arm | Any]) -> list[Arm]:
    named = [arm if isinstance(arm, Arm) else Arm(_label(arm), arm) for arm in arms]
    if not named:
        raise UserError("A comparison needs at least one recipe.")
    folders = [arm.folder for arm in named]
    for arm in named:
        if folders.count(arm.folder) > 1:
            raise UserError(f"A comparison needs recipes of different names; '{arm.label}' is there more than once.")
    return named


@contextmanager
def _resumable(directory: Path | None) -> Iterator[None]:
    """Say of an interrupted comparison how it goes on."""
    try:
        yield
    except Interrupted as stopped:
        if directory is None:
            raise
        raise Interrupted("Stopped and saved; the same command goes on where it was.") from stopped


class _Beginning(NamedTuple):
    """What the arms of a seed have in common.

    tokenizer: None where each learns its own, which comes out alike. scores: of the start, where they are wanted.
    """

    weights: torch.nn.Module | None
    corpus: Corpus
    tokenizer: Any = None
    scores: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class _Plan:
    """What a comparison asks of every seed. budgets: of runs, by label, none of them in seconds; directory: for the
    runs; None keeps them in memory."""

    arms: list[Arm]
    budgets: Mapping[str, Budget]
    start: Start | None
    directory: Path | None
    trust_code: bool = False
    budget_fractions: Mapping[str, float] = field(default_factory=dict)
    validations: int = VALIDATIONS

    def in_steps(
        self,
        corpus: Corpus,
        budget: Budget,
        seeds: Sequence[int],
        display: Display,
        unkept: Path,
        jobs: int,
        given: Mapping[str, int] | None,
    ) -> _Plan:
        """Give every arm its budget, and time arms where it is in seconds.

        What arms begin with is timed and trained before them, at the first seed, as it makes what they are trained on.
        """
        plan, begin = self, _Beginning(None, corpus)
        if self.start is not None:
            first = [TimedArm(START, self.start.recipe, corpus)]
            start_steps = given if given is not None and START in given else None
            budgets = budgets_in_steps(first, self.start.budget, seeds, self.directory, display, given=start_steps)
            plan = replace(plan, budgets=budgets)
            if given is None and budget.seconds is not None:
                with _resumable(self.directory):
                    begin = plan.beginning(corpus, seeds[0], display, unkept)
        timed = [TimedArm(arm.label, arm.recipe, begin.corpus, begin.tokenizer, begin.weights) for arm in self.arms]
        budgets = budgets_in_steps(timed, budget, seeds, self.directory, display, jobs, given)
        if given is None:  # recorded steps are those of the fraction already
            budgets = {label: one.scaled(self.budget_fractions.get(label, 1.0)) for label, one in budgets.items()}
        return replace(plan, budgets=dict(plan.budgets) | budgets)

    def folder(self, arm: Arm, seed: int) -> Path | None:
        return self.directory / "runs" / arm.folder / f"seed-{seed}" if self.directory else None

    def beginning(self, corpus: Corpus, seed: int, watcher: ProgressReporter, unkept: Path) -> _Beginning:
        """unkept: a folder for what is made, where there is no other."""
        if self.start is None:
            return self._fresh(corpus, seed)
        folder = self.directory / START / f"seed-{seed}" if self.directory else None
        budget = self.budgets[START]
        run = trained_start(self.start.recipe, corpus, budget, seed, folder, watcher, self.trust_code)
        scores: dict[str, float] = {}
        if self.start.scored:
            scores = {score.name: score.value for score in kept_scores(folder, lambda: evaluate(run, corpus))}
        if self.start.makes is not None:
            made = (self.directory or unkept) / MADE / f"seed-{seed}"
            corpus = open_saved(made) if is_saved(made) else self.start.makes(run, corpus, made, seed)
        watcher.finished(START, seed, {})
        if not self.start.weights:
            return self._fresh(corpus, seed)._replace(scores=scores)
        return _Beginning(run.model, corpus, getattr(run.processor, "tokenizer", None), scores)

    def _fresh(self, corpus: Corpus, seed: int) -> _Beginning:
        """Weights drawn at random, which the arms have in common."""
        for arm in self.arms:
            recipe_started_from(arm.recipe, None)  # raises UserError for one that begins with a run
        first = self.arms[0].recipe
        processor = fit_processor(first, corpus)
        return _Beginning(random_weights(lambda: first.build(processor), seed), corpus)

    def trained(
        self,
        arm: Arm,
        corpus: Corpus,
        seed: int,
        begin: _Beginning,
        watcher: ProgressReporter,
        folder: Path | None,
    ) -> Run:
        """Train an arm on what the arms have in common, with the corpus that they are scored on for validation."""
        return train(
            arm.recipe,
            begin.corpus,
            self.budgets[arm.label],
            seed=seed,
            out=folder,
            name=arm.label,
            weights_like=begin.weights,
            tokenizer=begin.tokenizer,
            validate=validation(self._tested(corpus, begin)),
            validations=self.validations,
            on_step=watcher.on_step(arm.label, seed),
            trust_code=self.trust_code,
        )

    def trial(self, arm: Arm, corpus: Corpus, seed: int, begin: _Beginning, watcher: ProgressReporter) -> Trial:
        """Train on what the arms have in common, and score on the comparison's corpus, or on what the start made."""
        folder = self.folder(arm, seed)
        run = self.trained(arm, corpus, seed, begin, watcher, folder)

        def scored() -> list[Score]:
            watcher.scoring(arm.label, seed)
            return evaluate(run, self._tested(corpus, begin))

        trial = Trial(arm, seed, run, {score.name: score for score in kept_scores(folder, scored)})
        watcher.finished(arm.label, seed, trial.scores)
        return trial

    def _tested(self, corpus: Corpus, begin: _Beginning) -> Corpus:
        return begin.corpus if self.start is not None and self.start.tests else corpus

    def side_by_side(self, corpus: Corpus, seeds: Sequence[int], jobs: int, watcher: ProgressReporter) -> None:
        """Run the trials that are not finished, several at a time, after what all arms of their seed begin with."""
        opened = corpus.choices, corpus.splits
        recipes = [arm.recipe for arm in self.arms] + ([self.start.recipe] if self.start else [])
        own_files = [file for file in map(user_file, recipes) if file is not None]
        begins = [Job(START, seed, partial(_alone, self, *opened, None, seed)) for seed in seeds if self.start]
        trials = [
            Job(arm.label, seed, partial(_alone, self, *opened, arm, seed))
            for seed in seeds
            for arm in self.arms
            if not (folder := self.folder(arm, seed)) or not (folder / SCORES).is_file()
        ]
        if len(trials) > 1:
            run_in_parallel(begins, jobs, watcher, own_files)
            run_in_parallel(trials, jobs, watcher, own_files)


def trained_start(
    recipe: Any,
    corpus: Corpus,
    budget: Budget,
    seed: int,
    folder: Path | None,
    watcher: ProgressReporter,
    trust_code: bool = False,
) -> Run:
    """Train what all arms of a seed begin with. folder: of the run, which is kept; None keeps it in memory."""
    shown = watcher.on_step(START, seed)
    return train(recipe, corpus, budget, seed=seed, out=folder, name=START, on_step=shown, trust_code=trust_code)


def _alone(
    plan: _Plan,
    choices: Mapping[str, Any],
    splits: Mapping[str, np.ndarray],
    arm: Arm | None,
    seed: int,
    watcher: ProgressReporter,
) -> None:
    """What a process does that shares nothing but the disk: a trial, or without an arm what it begins with."""
    assert plan.directory is not None
    corpus = reopen(choices).with_splits(splits)
    begin = plan.beginning(corpus, seed, watcher, plan.directory)
    if arm is not None:
        plan.trial(arm, corpus, seed, begin, watcher)


def _label(recipe: Any) -> str:
    return type(recipe).__module__.rpartition(".")[2]


def kept_scores(folder: Path | None, scored: Callable[[], list[Score]]) -> list[Score]:
    """The scores that a folder of a run keeps, else those that are computed now, which it keeps then.

    They are rounded as in the file, so that a comparison that goes on after a stop has the numbers of an undisturbed
    one.
    """
    if folder is None:
        return scored()
    if not (kept := folder / SCORES).is_file():
        write_text(kept, json.dumps([score.to_json() for score in scored()]))
    return [Score.from_json(record) for record in json.loads(kept.read_text(encoding="utf-8"))]
