"""Tune hyper-parameters by successive halving (Jamieson and Talwalkar 2016): all candidates train for a fraction of the
schedule, the best 1/eta go on, and the last ones finish.

A candidate is one run. Each rung continues its checkpoint under the learning-rate schedule of the whole training, so
that a finished candidate is the run that `train` gives with the same values. Rungs end after eta^-k of the steps. The
candidates of the last rung, at most eta, are compared when they have finished. All candidates have the same seed, and
so the same first weights, the same examples and the same validation rows, on which differences are paired. Only the
training split and the validation split are read.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from polymodal.constraints import validate_constraints, validate_types
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError, check_writable
from polymodal.evaluation import Score, validation
from polymodal.evaluation.statistics import headlines, paired_difference
from polymodal.reproduce.display import Display
from polymodal.reproduce.halving_display import HalvingDisplay
from polymodal.reproduce.halving_result import BEST, TUNING, Tuning, flags_of, short
from polymodal.reproduce.timing import TIMING, TimedArm, budgets_in_steps
from polymodal.reproduce.tuning import grid as combinations
from polymodal.reproduce.tuning import with_value
from polymodal.training import Interrupted, Paused, RuntimeConfig, train
from polymodal.training.folder_lock import writes
from polymodal.training.initialization import recipe_started_from
from polymodal.training.nonfinite import NonFiniteTraining
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import evaluating, write_json
from polymodal.training.run_index import read_history
from polymodal.types import Budget

CANDIDATES, SCORES = "candidates", "scores"
MAX_CANDIDATES = 256
SAME = ("recipe", "corpus", "budget", "seed", "init", "eta", "grid")  # what a folder goes on with

Judge = Callable[[nn.Module, Any], Mapping[str, Score]]


@dataclass(frozen=True)
class Candidate:
    """A combination of values. steps: at the end of each rung; the last is the length of the schedule."""

    number: int
    values: Mapping[str, Any]
    recipe: Any
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A candidate at the end of a rung. failed: why it diverged, else ''."""

    scores: Mapping[str, Score]
    seconds: float
    failed: str = ""


def rung_sizes(candidates: int, eta: int) -> list[int]:
    """Return the number of candidates at each rung: 1/eta of those before, rounded up, until at most eta are left."""
    sizes = [candidates]
    while sizes[-1] > eta:
        sizes.append(math.ceil(sizes[-1] / eta))
    return sizes


def rung_steps(steps: int, rungs: int, eta: int) -> tuple[int, ...]:
    """Return the steps at the end of each rung of a schedule. Raises UserError for fewer than one step a rung."""
    ends = tuple(steps // eta ** (rungs - 1 - number) for number in range(rungs))
    if ends[0] < 1:
        raise UserError(
            f"The budget is too small: it gives a whole training {steps} steps, and {rungs} rungs need at least "
            f"{eta ** (rungs - 1)}; give a larger --budget or a smaller --grid."
        )
    return ends


def whole_trainings(sizes: Sequence[int], eta: int) -> float:
    """Return the cost of all rungs, in trainings over the whole schedule."""
    rungs = len(sizes)
    leave = [size - after for size, after in zip(sizes, [*sizes[1:], 0], strict=True)]
    return sum(count * eta ** -(rungs - 1 - number) for number, count in enumerate(leave))


def candidates_of(recipe: Any, grid: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """Return all combinations of the values. Raises UserError for a grid that cannot be tried."""
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(
                f"The grid has no list of values for '{name}'; write for example {{'{name}': (1e-3, 3e-3)}}."
            )
        if len({repr(value) for value in values}) < len(values):
            raise UserError(f"The grid names a value of '{name}' more than once.")
    count = math.prod(map(len, grid.values()))
    if count < 2:
        raise UserError("The grid has a single combination of values, so there is nothing to compare; add values.")
    if count > MAX_CANDIDATES:
        raise UserError(f"The grid has {count:,} combinations of values; take at most {MAX_CANDIDATES}.")
    candidates = []
    for number, chosen in enumerate(combinations(grid), 1):
        tuned = recipe
        for name, value in chosen.items():
            tuned = with_value(tuned, name, value)
        validate_types(tuned)
        validate_constraints(tuned)
        candidates.append(Candidate(number, chosen, tuned))
    return candidates


@writes("out")
def successive_halving(
    recipe: Any,
    corpus: Corpus,
    budget: Budget,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    out: Path,
    eta: int = 2,
    seed: int = 0,
    init: Path | str | None = None,
    name: str | None = None,
    runtime: RuntimeConfig | None = None,
    validate: Judge | None = None,
    display: HalvingDisplay | None = None,
    command: str = "",
    trust_code: bool = False,
) -> Tuning:
    """Train the combinations of a grid by successive halving; return all results and the best run.

    budget: of all candidates together, in steps, examples or seconds of training; validation does not count. Seconds
    are turned into steps by timing, which is paid from them. grid: values by the name of a hyper-parameter, such as
    `optimizer.learning_rate`; by default the recipe's `tuning_grid()`. out: folder of the candidates, of `tuning.json`
    and of `best`, an ordinary run; the same call goes on with an unfinished one. validate: gives the scores, of which
    the headline one decides; by default those of the validation split. command: that trains the recipe, which the
    record completes to the one that trains the best.
    Raises UserError for a grid or a budget that cannot be used, data without validation split, and a folder that holds
    something else; Interrupted after Ctrl-C, SIGTERM or SIGHUP.
    """
    if not isinstance(eta, int) or eta < 2:
        raise UserError(f"--eta is at least 2, not {eta}.")
    values = dict(grid if grid is not None else recipe.tuning_grid())
    candidates = candidates_of(recipe, values)
    validate = validate or validation(corpus)
    if validate is None:
        raise UserError(f"Tuning needs a validation split, which '{corpus.name}' has not.")
    check_writable(out)
    record = {
        "state": "running",
        "recipe": recipe_record(recipe, name),
        "corpus": dict(corpus.choices),
        "budget": str(budget),
        "seed": seed,
        "init": None if init is None else str(init),
        "eta": eta,
        "grid": {field: list(each) for field, each in values.items()},
    }
    record, finished = _record_of(out, record)
    if finished:
        return Tuning(record, out, finished_before=True)
    display = display or HalvingDisplay(Console(quiet=True))
    begin: dict[str, Any] = {"init": init, "trust_code": trust_code}
    candidates = _with_steps(candidates, corpus, budget, eta, seed, out, begin)
    given: dict[str, Any] = begin | {"seed": seed, "name": name, "runtime": runtime}
    halving = _Halving(candidates, corpus, validate, out, record, given, display, command)
    with display:
        return halving.run()


def _record_of(out: Path, record: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the record to go on with, and whether it is finished. Raises UserError for a folder of something else."""
    path = out / TUNING
    if not out.exists() or all(one.name.startswith(".") for one in out.iterdir()):
        return record, False
    if not path.is_file():
        if {one.name for one in out.iterdir() if not one.name.startswith(".")} == {"steps.json"}:
            return record, False  # stopped between timing and the first candidate
        raise UserError(f"{out} holds something else than a tuning; choose another --out.")
    held = Tuning.read(out).record
    same = json.loads(json.dumps(record))
    if differing := ", ".join(name for name in SAME if held.get(name) != same[name]):
        raise UserError(f"{out} holds a tuning with another {differing}; choose another --out, or remove it.")
    return (held, True) if held.get("state") == "finished" else (record, False)


def _with_steps(
    candidates: Sequence[Candidate],
    corpus: Corpus,
    budget: Budget,
    eta: int,
    seed: int,
    out: Path,
    begin: Mapping[str, Any],
) -> list[Candidate]:
    """Return the candidates with the steps of their rungs, which stay within the budget together."""
    sizes = rung_sizes(len(candidates), eta)
    trainings = whole_trainings(sizes, eta)
    if budget.steps is not None:
        whole = {one.number: int(budget.steps / trainings) for one in candidates}
    elif budget.examples is not None:
        whole = {one.number: int(budget.examples / trainings / one.recipe.batch_size) for one in candidates}
    elif budget.seconds is not None:
        whole = _steps_in_time(candidates, corpus, budget.seconds, trainings, seed, out, begin)
    else:
        raise UserError(f"The budget of a tuning is in steps, examples, epochs or time, not in {budget.unit}.")
    return [replace(one, steps=rung_steps(whole[one.number], len(sizes), eta)) for one in candidates]


def _steps_in_time(
    candidates: Sequence[Candidate],
    corpus: Corpus,
    seconds: float,
    trainings: float,
    seed: int,
    out: Path,
    begin: Mapping[str, Any],
) -> dict[int, int]:
    """Return the steps of a whole training, by number. Candidates that differ in floats alone are timed once."""

    def cost(one: Candidate) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in one.values.items() if not isinstance(value, float))

    first = {cost(one): one for one in reversed(candidates)}
    arms = [
        TimedArm(str(one.number), recipe_started_from(one.recipe, begin["init"], begin["trust_code"]), corpus, **begin)
        for one in first.values()
    ]
    each = Budget(seconds=seconds / (trainings + TIMING * len(arms)))
    quiet = Display([arm.label for arm in arms], [seed], each, Console(quiet=True))
    # Seconds of the clock on the wall: a machine that is busy now will be so for the next minutes.
    budgets = budgets_in_steps(arms, each, [seed], out, quiet, clock=time.perf_counter)
    return {one.number: budgets[str(first[cost(one)].number)].steps or 0 for one in candidates}


class _Halving:
    """The rungs of one tuning. given: further arguments of `train`."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        corpus: Corpus,
        validate: Judge,
        out: Path,
        record: dict[str, Any],
        given: Mapping[str, Any],
        display: HalvingDisplay,
        command: str,
    ):
        self.candidates = list(candidates)
        self.corpus = corpus
        self.validate = validate
        self.out = out
        self.record = record
        self.given = given
        self.display = display
        self.command = command
        self.sizes = rung_sizes(len(self.candidates), record["eta"])
        self.metric = ""
        self.higher_is_better = True
        record["rungs"] = [
            {"candidates": size, "steps": max(one.steps[number] for one in self.candidates)}
            for number, size in enumerate(self.sizes)
        ]
        record["candidates"] = [
            {
                "number": one.number,
                "values": dict(one.values),
                "whole_steps": one.steps[-1],
                "folder": f"{CANDIDATES}/{one.number}",
                "rungs": [],
                "result": "",
            }
            for one in self.candidates
        ]

    def run(self) -> Tuning:
        self._save()
        self.display.planned(self.record)
        survivors = self.candidates
        for rung in range(len(self.sizes)):
            judged = {}
            for place, one in enumerate(survivors, 1):
                title = f"rung {rung + 1} of {len(self.sizes)}, {place} of {len(survivors)}: {short(one.values)}"
                judged[one.number] = self._judged(one, rung, title)
                self._note(one, rung, judged[one.number], title)
            ranked = sorted(survivors, key=lambda one: self._quality(judged[one.number]), reverse=True)
            if self._quality(judged[ranked[0].number]) == -math.inf:
                raise UserError("All candidates diverged; put smaller learning rates into the --grid.")
            if rung + 1 < len(self.sizes):
                survivors = self._cut(ranked, judged, rung)
            else:
                self._finish(ranked, judged)
        return Tuning.read(self.out)

    def _judged(self, one: Candidate, rung: int, title: str) -> Judged:
        """Return the scores at the end of a rung: those that the folder keeps, else train until there."""
        path = self.out / SCORES / f"{one.number}-{rung + 1}.json"
        if not path.is_file():
            judged = self._trained(one, rung, title)
            path.parent.mkdir(parents=True, exist_ok=True)
            records = [score.to_json() for score in judged.scores.values()]
            write_json(path, {"seconds": judged.seconds, "failed": judged.failed, "scores": records})
        held = json.loads(path.read_text(encoding="utf-8"))
        scores = [Score.from_json(score) for score in held["scores"]]
        return Judged({score.name: score for score in scores}, held["seconds"], held["failed"])

    def _trained(self, one: Candidate, rung: int, title: str) -> Judged:
        scores: dict[str, Score] = {}
        folder = self.out / CANDIDATES / str(one.number)
        is_last = rung + 1 == len(self.sizes)

        def judge(method: nn.Module, processor: Any) -> Mapping[str, Score]:
            scores.clear()
            scores.update(self.validate(method, processor))
            return scores

        failed = ""
        try:
            run = train(
                one.recipe,
                self.corpus,
                Budget(steps=one.steps[-1]),
                out=folder,
                validate=judge,
                validations=1,
                on_step=self.display.on_step(title, one.steps[rung - 1] if rung else 0, one.steps[rung]),
                until_step=None if is_last else one.steps[rung],
                **self.given,
            )
            if not scores:  # it had finished before its scores were kept
                with evaluating(run.model) as method:
                    judge(method, run.processor)
        except Paused:
            pass
        except Interrupted as stopped:
            raise Interrupted("Stopped and saved; the same command goes on where it was.") from stopped
        except NonFiniteTraining as error:
            failed = str(error)
        except torch.OutOfMemoryError:
            failed = "It does not fit into the memory."
        history = read_history(folder) if folder.exists() else []
        return Judged({} if failed else scores, history[-1]["seconds"] if history else 0.0, failed)

    def _note(self, one: Candidate, rung: int, judged: Judged, title: str) -> None:
        """Record a result, and show it."""
        if not judged.failed and not judged.scores:
            raise UserError("Validation of this recipe on this data gives no metric, so candidates cannot be compared.")
        if not self.metric and judged.scores:
            score = next(iter(headlines(judged.scores.values())), next(iter(judged.scores.values())))
            self.metric, self.higher_is_better = score.name, score.higher_is_better
            about = {"metric": score.name, "unit": score.unit, "higher_is_better": score.higher_is_better}
            self.record |= about
        entry: dict[str, Any] = {"step": one.steps[rung], "seconds": judged.seconds}
        if judged.failed:
            entry["failed"] = judged.failed
        if (score_or_none := judged.scores.get(self.metric)) is not None:
            entry |= score_or_none.estimate()._asdict()
        entry["metrics"] = {name: score.value for name, score in judged.scores.items()}
        held = self.record["candidates"][one.number - 1]
        held["rungs"].append(entry)
        held["result"] = "diverged" if judged.failed else ""
        self._save()
        self.display.judged(title, entry, self.record)

    def _quality(self, judged: Judged) -> float:
        """Higher is better; a candidate that diverged is the worst."""
        score = judged.scores.get(self.metric)
        if judged.failed or score is None or not math.isfinite(score.value):
            return -math.inf
        return score.value if self.higher_is_better else -score.value

    def _ties(self, one: Judged, other: Judged) -> bool:
        """Return whether the difference is within its 95 % interval over validation rows; with one row, always."""
        if -math.inf in (self._quality(one), self._quality(other)):
            return False
        scores = one.scores[self.metric], other.scores[self.metric]
        units = {len(score.clusters) for score in scores}
        if len(units) > 1 or units & {0, 1}:
            return True
        difference = paired_difference(scores[:1], scores[1:])
        return difference.low <= 0 <= difference.high

    def _cut(self, ranked: Sequence[Candidate], judged: Mapping[int, Judged], rung: int) -> list[Candidate]:
        """Return the candidates that go on, in the order of the grid; mark the others."""
        size = self.sizes[rung + 1]
        size = min(size, sum(self._quality(judged[one.number]) > -math.inf for one in ranked))
        size = self._affordable(size, rung)
        border = judged[ranked[size - 1].number]
        close = []
        for one in ranked[size:]:
            held = self.record["candidates"][one.number - 1]
            held["result"] = held["result"] or "out"
            if self._ties(border, judged[one.number]):
                held["result"] = "out, tied"
                close.append(one.number)
        self.record["rungs"][rung]["dropped_in_a_tie"] = close
        self._save()
        return sorted(ranked[:size], key=lambda one: one.number)

    def _affordable(self, size: int, rung: int) -> int:
        """Return how many candidates go on: fewer than planned where a budget in time would not last, at least one."""
        seconds = Budget.parse(self.record["budget"]).seconds
        if seconds is None:
            return size
        rungs = [one["rungs"] for one in self.record["candidates"]]
        used = sum(each[-1]["seconds"] for each in rungs)
        per_step = used / max(sum(each[-1]["step"] for each in rungs), 1)
        ends = [one["steps"] for one in self.record["rungs"]]
        spans = [end - begin for begin, end in zip(ends[rung:], ends[rung + 1 :], strict=False)]

        def cost(count: int) -> float:
            planned = zip(self.sizes[rung + 1 :], spans, strict=True)
            return per_step * sum(min(count, limit) * span for limit, span in planned)

        fitting = next((count for count in range(size, 1, -1) if used + cost(count) <= seconds), 1)
        if fitting < size:
            self.record["rungs"][rung + 1]["candidates"] = fitting
            self.display.say(f"Training is slower than it was timed: {fitting} in place of {size} go on.")
        return fitting

    def _finish(self, ranked: Sequence[Candidate], judged: Mapping[int, Judged]) -> None:
        """Mark the best and those that tie with it; keep its run as `best`."""
        best, others = ranked[0], ranked[1:]
        tied = [one.number for one in others if self._ties(judged[best.number], judged[one.number])]
        for one in others:
            held = self.record["candidates"][one.number - 1]
            held["result"] = held["result"] or ("ties" if one.number in tied else "worse")
        self.record["candidates"][best.number - 1]["result"] = "best"
        _keep(self.out / CANDIDATES / str(best.number), self.out / BEST)
        command = " ".join([self.command, *flags_of(best.values), f"--budget {best.steps[-1]}steps"])
        self.record |= {
            "state": "finished",
            "best": {"number": best.number, "values": dict(best.values), "steps": best.steps[-1], "folder": BEST},
            "tied_with_best": tied,
            "steps": sum(one["rungs"][-1]["step"] for one in self.record["candidates"]),
            "seconds": round(sum(one["rungs"][-1]["seconds"] for one in self.record["candidates"]), 3),
            "command": command if self.command else "",
        }
        self._save()

    def _save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / TUNING, self.record)


def _keep(folder: Path, best: Path) -> None:
    """Copy a finished run, by links where the file system has them: no file of a finished run is written in place."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    aside = best.with_name(f".{best.name}.partial")
    for old in (aside, best):
        with suppress(FileNotFoundError):
            shutil.rmtree(old)
    shutil.copytree(folder, aside, copy_function=link)
    os.replace(aside, best)
