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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError, check_writable, lacks_memory
from polymodal.evaluation import Score, validation
from polymodal.reproduce.halving_display import HalvingDisplay
from polymodal.reproduce.halving_plan import Candidate, candidates_of, rung_sizes, with_steps
from polymodal.reproduce.halving_ranking import DIVERGED, OUT_OF_MEMORY, Judged, Ranking, affordable, all_failed
from polymodal.reproduce.halving_result import BEST, TUNING, Tuning, flags_of, keep_best, short
from polymodal.training import Interrupted, Paused, RuntimeConfig, train
from polymodal.training.data_fingerprint import data_fingerprint
from polymodal.training.folder_lock import writes
from polymodal.training.nonfinite import NonFiniteTraining
from polymodal.training.parallel import launched_together
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import evaluating, write_json
from polymodal.training.run_index import read_history
from polymodal.types import Budget

CANDIDATES, SCORES = "candidates", "scores"
SAME = ("recipe", "corpus", "data_fingerprint", "budget", "seed", "init", "eta", "grid")  # what a folder goes on with

Judge = Callable[[nn.Module, Any], Mapping[str, Score]]


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
    if launched_together():
        raise UserError("Tuning runs in one process; start it without torchrun.")
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
        "data_fingerprint": data_fingerprint(corpus),
        "budget": str(budget),
        "seed": seed,
        "init": None if init is None else str(init),
        "eta": eta,
        "grid": {field: list(each) for field, each in values.items()},
    }
    record, finished = _record_of(out, record)
    if finished:
        return Tuning(record, out, finished_before=True)
    display = display or HalvingDisplay(console=Console(quiet=True))
    begin: dict[str, Any] = {"init": init, "trust_code": trust_code}
    candidates = with_steps(candidates, corpus, budget, eta, seed, out, begin)
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
        differing = differing.replace("data_fingerprint", "state of the data")
        raise UserError(f"{out} holds a tuning with another {differing}; choose another --out, or remove it.")
    return (held, True) if held.get("state") == "finished" else (record, False)


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
        self.ranking = Ranking()
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
            ranked = sorted(survivors, key=lambda one: self.ranking.quality(judged[one.number]), reverse=True)
            if self.ranking.quality(judged[ranked[0].number]) == -math.inf:
                raise UserError(all_failed({one.failure for one in judged.values()}))
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
            about = {"seconds": judged.seconds, "failure": judged.failure, "reason": judged.reason}
            write_json(path, about | {"scores": records})
        held = json.loads(path.read_text(encoding="utf-8"))
        scores = [Score.from_json(score) for score in held["scores"]]
        return Judged({score.name: score for score in scores}, held["seconds"], held["failure"], held["reason"])

    def _trained(self, one: Candidate, rung: int, title: str) -> Judged:
        scores: dict[str, Score] = {}
        folder = self.out / CANDIDATES / str(one.number)
        is_last = rung + 1 == len(self.sizes)

        def judge(method: nn.Module, processor: Any) -> Mapping[str, Score]:
            scores.clear()
            scores.update(self.validate(method, processor))
            return scores

        failure, reason = "", ""
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
            failure, reason = DIVERGED, str(error)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            failure, reason = OUT_OF_MEMORY, str(error).partition("\n")[0]
        history = read_history(folder) if folder.exists() else []
        seconds = history[-1]["seconds"] if history else 0.0
        return Judged({} if failure else scores, seconds, failure, reason)

    def _note(self, one: Candidate, rung: int, judged: Judged, title: str) -> None:
        """Record a result, and show it."""
        if not judged.failure and not judged.scores:
            raise UserError("Validation of this recipe on this data gives no metric, so candidates cannot be compared.")
        if not self.ranking.metric and judged.scores:
            score = self.ranking.begin(judged.scores)
            about = {"metric": score.name, "unit": score.unit, "higher_is_better": score.higher_is_better}
            self.record |= about
        entry: dict[str, Any] = {"step": one.steps[rung], "seconds": judged.seconds}
        if judged.failure:
            entry |= {"failure": judged.failure, "reason": judged.reason}
        if (score_or_none := judged.scores.get(self.ranking.metric)) is not None:
            entry |= score_or_none.estimate()._asdict()
        entry["metrics"] = {name: score.value for name, score in judged.scores.items()}
        held = self.record["candidates"][one.number - 1]
        held["rungs"].append(entry)
        held["result"] = judged.failure
        self._save()
        self.display.judged(title, entry, self.record)

    def _cut(self, ranked: Sequence[Candidate], judged: Mapping[int, Judged], rung: int) -> list[Candidate]:
        """Return the candidates that go on, in the order of the grid; mark the others."""
        size = self.sizes[rung + 1]
        size = min(size, sum(self.ranking.quality(judged[one.number]) > -math.inf for one in ranked))
        if (fitting := affordable(self.record, self.sizes, rung, size)) < size:
            self.record["rungs"][rung + 1]["candidates"] = fitting
            self.display.say(f"Training is slower than it was timed: {fitting} in place of {size} go on.")
        size = min(size, fitting)
        border = judged[ranked[size - 1].number]
        close = []
        for one in ranked[size:]:
            held = self.record["candidates"][one.number - 1]
            held["result"] = held["result"] or "out"
            if self.ranking.ties(border, judged[one.number]):
                held["result"] = "out, tied"
                close.append(one.number)
        self.record["rungs"][rung]["dropped_in_a_tie"] = close
        self._save()
        return sorted(ranked[:size], key=lambda one: one.number)

    def _finish(self, ranked: Sequence[Candidate], judged: Mapping[int, Judged]) -> None:
        """Mark the best and those that tie with it; keep its run as `best`."""
        best, others = ranked[0], ranked[1:]
        tied = [one.number for one in others if self.ranking.ties(judged[best.number], judged[one.number])]
        for one in others:
            held = self.record["candidates"][one.number - 1]
            held["result"] = held["result"] or ("ties" if one.number in tied else "worse")
        self.record["candidates"][best.number - 1]["result"] = "best"
        keep_best(self.out / CANDIDATES / str(best.number), self.out / BEST)
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
