"""Compare methods fairly: the same data in the same order, the same budget, paired seeds, one table.

Each arm runs once a seed. At a seed all arms start from the same weights wherever names and shapes agree, see the
examples in the same order, and are scored on the same test units, so that differences are paired.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from polymodal.corpora import Corpus
from polymodal.corpora.written import is_written, open_written
from polymodal.errors import UserError
from polymodal.evaluation import Score, evaluate, validation
from polymodal.evaluation.statistics import Estimate, over_seeds, paired_difference
from polymodal.reproduce.display import Display
from polymodal.training import Interrupted, Run, train
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import write_json, write_text
from polymodal.training.trainer import command_line
from polymodal.types import Budget

SCORES, RESULTS, REPORT = "scores.json", "results.json", "report.html"
START, MADE = "start", "made"  # what all arms begin with, and what it makes for them


@dataclass(frozen=True)
class Arm:
    """A recipe under the name that it has in this comparison."""

    label: str
    recipe: Any

    @property
    def folder(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.label).strip("._") or "arm"


@dataclass(frozen=True)
class Start:
    """What all arms of a comparison begin with: a recipe that is trained first, once a seed.

    makes: the corpus that arms are trained on (`types.Claim.start_makes`); by default the comparison's own.
    """

    recipe: Any
    budget: Budget
    makes: Callable[[Any, Corpus, Path, int], Corpus] | None = None


@dataclass(frozen=True)
class Trial:
    """One arm at one seed: its run, and its scores by name."""

    arm: Arm
    seed: int
    run: Run
    scores: dict[str, Score]


@dataclass(frozen=True)
class Comparison:
    """All trials, seed by seed in the order of the arms."""

    arms: list[Arm]
    corpus: Corpus
    budget: Budget
    seeds: list[int]
    trials: list[Trial]
    directory: Path | None = None

    def of(self, arm: Arm) -> list[Trial]:
        return [trial for trial in self.trials if trial.arm == arm]

    @property
    def score_names(self) -> list[str]:
        """The scores that every arm has, in the order of evaluation."""
        return [name for name in self.trials[0].scores if all(name in trial.scores for trial in self.trials)]

    def having(self, name: str) -> list[Arm]:
        """The arms that have this score: one without a decoder has none of it."""
        return [arm for arm in self.arms if all(name in trial.scores for trial in self.of(arm))]

    def estimate(self, arm: Arm, name: str) -> Estimate:
        """The mean over seeds, with its 95 % interval over seeds and test units."""
        scores, *others = self._scores(name, [arm, *(other for other in self.having(name) if other != arm)])
        return over_seeds(scores, others)

    def can_be_compared(self, name: str) -> bool:
        """Whether the baseline (the first arm) and the second one have this score."""
        return {arm.label for arm in self.arms[:2]} <= {arm.label for arm in self.having(name)}

    def difference(self, arm: Arm, name: str, baseline: Arm | None = None) -> Estimate:
        """Arm minus baseline (the first arm, unless another is given), paired by seed and test unit."""
        base = baseline or self.arms[0]
        further = [other for other in self.having(name) if other not in (arm, base)]
        theirs, ours, *others = self._scores(name, [base, arm, *further])
        return paired_difference(ours, theirs, others)

    def _scores(self, name: str, arms: Sequence[Arm]) -> list[list[Score]]:
        return [[trial.scores[name] for trial in self.of(arm)] for arm in arms]

    def cost(self, arm: Arm) -> dict[str, float]:
        """Mean seconds, steps and examples of a run; parameters; floating-point operations an example."""
        records = [trial.run.record for trial in self.of(arm)]
        keys = ("seconds", "steps", "examples", "parameters", "flops_an_example", "skipped")
        return {key: mean(record[key] for record in records) for key in keys}

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, for `results.json`."""
        one = self.trials[0].scores
        return {
            "command": command_line(),
            "corpus": dict(self.corpus.choices),
            "budget": str(self.budget),
            "seeds": self.seeds,
            "interval": "95 %, over seeds and test units",
            "arms": {arm.label: self.of(arm)[0].run.record["recipe"] | {"cost": self.cost(arm)} for arm in self.arms},
            "scores": {
                name: {
                    "chance": one[name].chance,
                    "higher_is_better": one[name].higher_is_better,
                    "test_units": len(one[name].units),
                    "arms": {
                        arm.label: self.estimate(arm, name)._asdict()
                        | {"by_seed": {trial.seed: trial.scores[name].value for trial in self.of(arm)}}
                        | {"difference_to_first": self.difference(arm, name)._asdict()}
                        for arm in self.arms
                    },
                }
                for name in self.score_names
            },
            "runs": [
                {"arm": trial.arm.label, "seed": trial.seed, "directory": str(trial.run.directory or "")}
                | {key: trial.run.record[key] for key in ("steps", "examples", "seconds", "command")}
                for trial in self.trials
            ],
        }


def untrained(recipe: Any, seconds: float, steps: int, examples: int, directory: Path | None = None) -> Run:
    """What stands for the run of an arm that trains nothing, such as an attack or a metric: its recipe and its cost."""
    cost = {"seconds": seconds, "steps": steps, "examples": examples}
    unused = {"parameters": 0, "flops_an_example": 0.0, "skipped": 0}
    record = {"recipe": recipe_record(recipe), "command": command_line()} | cost | unused
    return Run(recipe, torch.nn.Module(), None, record, directory=directory)  # type: ignore[arg-type]


def compare(
    arms: Sequence[Arm | Any],
    corpus: Corpus,
    budget: Budget,
    seeds: int | Sequence[int] = 2,
    out: Path | str | None = None,
    display: Display | None = None,
    start: Start | None = None,
) -> Comparison:
    """Train and score every arm at every seed; finished runs in `out` are not run again.

    arms: `Arm`s, or recipes, which are then named after their file.
    out: a folder for the runs, `results.json` and `report.html`; without it nothing is written.
    start: what all arms begin with at a seed, in place of fresh weights.
    Raises UserError for fewer than one arm, two arms of the same name, or a folder that holds other runs.
    """
    named = [arm if isinstance(arm, Arm) else Arm(_label(arm), arm) for arm in arms]
    if not named or len({arm.folder for arm in named}) < len(named):
        raise UserError("A comparison needs recipes of different names; give each Arm a label of its own.")
    every = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    directory = Path(out) if out is not None else None
    display = display or Display([START] * (start is not None) + [arm.label for arm in named], every, budget)
    trials = []
    with display, tempfile.TemporaryDirectory() as unkept:
        for seed in every:
            try:
                if start is None:
                    begin = _fresh(named[0].recipe, corpus, seed)
                else:
                    begin = _started(start, corpus, seed, directory, Path(unkept), display)
                for arm in named:
                    folder = directory / "runs" / arm.folder / f"seed-{seed}" if directory else None
                    trials.append(_trial(arm, corpus, budget, seed, folder, begin, display))
            except Interrupted as stopped:
                if directory is None:
                    raise
                raise Interrupted("Stopped and saved; the same command goes on where it was.") from stopped
    comparison = Comparison(named, corpus, budget, every, trials, directory)
    if directory is not None:
        from polymodal.reproduce.report import report  # matplotlib and jinja2 are slow to import

        write_json(directory / RESULTS, comparison.to_json())
        write_text(directory / REPORT, report(comparison))
    return comparison


class _Beginning(NamedTuple):
    """What the arms of a seed have in common. tokenizer: None where each learns its own, which comes out alike."""

    weights: torch.nn.Module
    corpus: Corpus
    tokenizer: Any = None


def _fresh(recipe: Any, corpus: Corpus, seed: int) -> _Beginning:
    torch.manual_seed(seed)
    return _Beginning(recipe.build(recipe.processor(corpus)), corpus)


def _started(
    start: Start, corpus: Corpus, seed: int, directory: Path | None, unkept: Path, display: Display
) -> _Beginning:
    """unkept: a folder for what is made, where there is no other."""
    folder = directory / START / f"seed-{seed}" if directory else None
    run = train(
        start.recipe, corpus, start.budget, seed=seed, out=folder, name=START, on_step=display.on_step(START, seed)
    )
    if start.makes is not None:
        made = (directory or unkept) / MADE / f"seed-{seed}"
        corpus = open_written(made) if is_written(made) else start.makes(run, corpus, made, seed)
    display.finished(START, seed, {})
    return _Beginning(run.model, corpus, getattr(run.processor, "tokenizer", None))


def _label(recipe: Any) -> str:
    return type(recipe).__module__.rpartition(".")[2]


def _trial(
    arm: Arm, corpus: Corpus, budget: Budget, seed: int, folder: Path | None, begin: _Beginning, display: Display
) -> Trial:
    """Train on what the arms have in common, and score on the comparison's corpus."""
    run = train(
        arm.recipe,
        begin.corpus,
        budget,
        seed=seed,
        out=folder,
        name=arm.label,
        weights_like=begin.weights,
        tokenizer=begin.tokenizer,
        validate=validation(corpus),
        on_step=display.on_step(arm.label, seed),
    )

    def scored() -> list[Score]:
        display.scoring(arm.label, seed)
        return evaluate(run, corpus)

    scores = kept_scores(folder, scored)
    trial = Trial(arm, seed, run, {score.name: score for score in scores})
    display.finished(arm.label, seed, trial.scores)
    return trial


def kept_scores(folder: Path | None, scored: Callable[[], list[Score]]) -> list[Score]:
    """The scores that a folder of a run keeps, else those that are computed now, which it keeps then."""
    kept = folder / SCORES if folder else None
    if kept is not None and kept.is_file():
        return [Score.from_json(record) for record in json.loads(kept.read_text(encoding="utf-8"))]
    scores = scored()
    if kept is not None:
        write_text(kept, json.dumps([score.to_json() for score in scores]))
    return scores
