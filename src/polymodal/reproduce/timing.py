"""Seconds to steps: all arms are timed in alternation, once, before the first run.

A budget in seconds is the same for all arms only while the machine is equally busy for all of them. Each arm therefore
gets a number of steps, the same for every seed: those that fit into the seconds at the speed that was measured. The
arms take short turns, so that a busy machine slows all of them alike, and a pause in some turns of an arm does not
count: each batch counts with its median over the turns. Batches differ in length, so that an arm's step is the mean
over several batches. The first visit of a batch, which decodes it and computes features of frozen encoders, is timed
apart from later ones. Stages are timed one by one.
"""

from __future__ import annotations

import bisect
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.reproduce.display import Display
from polymodal.training import Interrupted, RuntimeConfig
from polymodal.training.feature_cache import features_kept_in
from polymodal.training.loop import Trainer
from polymodal.training.parallel import World, join_world
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import write_json
from polymodal.training.stopping import stop_signals
from polymodal.training.trainer import build_run
from polymodal.types import Budget

STEPS = "steps.json"
START = "start"  # the label of what all arms begin with
TURNS, SHORT_TURNS = 5, 3  # of each arm; few where a step takes long
MAX_BATCHES = 8  # in a turn
TIMING = 0.1  # fraction of an arm's budget that its timing takes, where a step is short enough
MIN_STEPS, FEW_STEPS = 3, 10
SPAN = 10**15  # examples of the budget that turns are placed in
BUSY = 0.05  # fraction of the time that threads wait for a core
LOADING_THREADS = 4  # with a GPU (`RuntimeConfig.num_threads`)

Clock = Callable[[], float]


@dataclass(frozen=True)
class TimedArm:
    """What is timed under a label. tokenizer, weights, init: what its runs begin with (`train`)."""

    label: str
    recipe: Any
    corpus: Corpus
    tokenizer: Any = None
    weights: torch.nn.Module | None = None
    init: Path | str | None = None
    trust_code: bool = False


@dataclass(frozen=True)
class StageCost:
    """Seconds of a step in a stage. first: added by the first visit of a batch. epoch: batches of the training split.

    fraction: of the steps, which are the stage's.
    """

    fraction: float
    seconds: float
    first: float
    epoch: int

    def of(self, steps: int) -> float:
        """The seconds of the stage in a run of so many steps."""
        steps_of_stage = self.fraction * steps
        return steps_of_stage * self.seconds + min(steps_of_stage, self.epoch) * self.first


def steps_that_fit(costs: Sequence[StageCost], seconds: float) -> int:
    """The largest number of steps whose stages take no more than the seconds; at least `MIN_STEPS`, and one a stage."""
    max_steps = int(seconds / _mean_seconds(costs)) + 1
    fitting = bisect.bisect_right(range(1, max_steps + 1), seconds, key=lambda n: sum(cost.of(n) for cost in costs))
    return max(fitting, MIN_STEPS, len(costs))


def budgets_in_steps(
    arms: Sequence[TimedArm],
    budget: Budget,
    seeds: Sequence[int],
    directory: Path | None,
    display: Display,
    jobs: int = 1,
    given: Mapping[str, int] | None = None,
    clock: Clock | None = None,
) -> dict[str, Budget]:
    """The budget of each arm: its steps where the budget is in seconds, else the budget itself.

    Steps are kept in `directory`, and an arm that has some there is given them again. Where others join it, all are
    timed, and the new ones get steps in proportion to those that are kept. given: steps to take in place of measured
    ones. clock: by default one that a busy machine does not change. Raises UserError for an arm without given steps,
    and for other steps in `directory`; Interrupted after Ctrl-C or SIGTERM, before anything is written.
    """
    if given is None and budget.seconds is None:
        return {arm.label: budget for arm in arms}
    path = directory / STEPS if directory is not None else None
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    about = {
        arm.label: {"budget": str(budget), "recipe": json.loads(json.dumps(recipe_record(arm.recipe)))} for arm in arms
    }
    recorded = {
        label: kept[label]["steps"]
        for label, facts in about.items()
        if label in kept and facts.items() <= kept[label].items()
    }
    if given is not None:
        for label in about:
            if label not in given:
                raise UserError(f"There is no number of steps for '{label}', only for {', '.join(given)}.")
            if recorded.get(label, given[label]) != given[label]:
                raise UserError(
                    f"{directory} holds runs of '{label}' with {recorded[label]} steps; choose another --out."
                )
        timings: dict[str, dict[str, Any]] = {label: {"steps": given[label]} for label in about}
    elif len(recorded) == len(about):
        timings = {label: {"steps": steps} for label, steps in recorded.items()}
    else:
        assert budget.seconds is not None
        display.timing([arm.label for arm in arms], seeds)
        costs = time_arms(arms, budget.seconds, seeds[0], jobs, clock or undisturbed_seconds)
        measured = {label: steps_that_fit(stages, budget.seconds) for label, stages in costs.items()}
        scale = median(steps / measured[label] for label, steps in recorded.items()) if recorded else 1.0
        timings = {
            label: {
                "steps": recorded.get(label, max(round(scale * measured[label]), MIN_STEPS)),
                "seconds_per_step": [float(f"{stage.seconds:.4g}") for stage in costs[label]],
                "seconds_per_first_visit": [float(f"{stage.first:.4g}") for stage in costs[label]],
            }
            for label in about
        }
    if path is not None and recorded.keys() != about.keys():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept | {label: about[label] | timings[label] for label in about})
    steps = {label: timings[label]["steps"] for label in about}
    display.timed(steps, seeds, few_steps(steps, str(budget)))
    return {label: Budget(steps=count) for label, count in steps.items()}


def few_steps(steps: Mapping[str, float], budget: str) -> str:
    """A sentence about the arms that train for very few steps; empty where there are none."""
    slow = [f"'{label}' ({count:.0f} steps)" for label, count in steps.items() if count < FEW_STEPS]
    if not slow:
        return ""
    return (
        f"The budget of {budget} is less than {FEW_STEPS} steps of {', '.join(slow)}; a larger --budget, or a smaller "
        "--batch-size, compares methods rather than their initialization."
    )


def recorded_steps(path: Path) -> tuple[Budget, dict[str, int]]:
    """The budget of an earlier comparison, and the steps of each arm, from its `results.json`.

    Raises UserError for another file, and where seeds of an arm had different steps.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        budget = Budget.parse(held["budget"])
        steps_of_runs = [(run["arm"], int(run["steps"])) for run in held["runs"]]
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}; --steps-from names the results.json of a comparison.") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not the results.json of a comparison.") from error
    steps = dict(steps_of_runs)
    if held.get("start_steps") is not None:
        steps[START] = held["start_steps"]
    if any(steps[arm] != count for arm, count in steps_of_runs):
        raise UserError(f"In {path} the seeds of an arm differ in steps; compare anew with --budget.")
    return budget, steps


def undisturbed_seconds() -> float:
    """A clock that stands still while this thread waits for a core that another process has (on Linux)."""
    return time.perf_counter() - _waited(Path("/proc/thread-self/schedstat"))


def _waited(path: Path) -> float:
    """Seconds that a thread was ready to run and did not; 0 where the system does not say it."""
    try:
        return int(path.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def waited_by_all_threads() -> float:
    """Seconds that the threads of this process were ready to run and did not."""
    return sum(_waited(thread / "schedstat") for thread in Path("/proc/self/task").glob("*"))


def time_arms(
    arms: Sequence[TimedArm], seconds: float, seed: int = 0, jobs: int = 1, clock: Clock = undisturbed_seconds
) -> dict[str, list[StageCost]]:
    """Seconds of a step in every stage of every arm, measured in alternating turns.

    Nothing remains of it: models, random states and features of frozen encoders are those of before. jobs: as in
    `compare`; each run will have so much of the cores. Raises Interrupted after Ctrl-C or SIGTERM, and UserError where
    the arms do not fit into the memory of a GPU together.

    Threads of a step wait for each other, and on a busy machine for cores, which no clock tells apart. Where they
    waited, the arms are timed again with one thread, of which the clock can tell; several are faster than one by the
    largest factor of any arm, the one that was disturbed least.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    with (
        tempfile.TemporaryDirectory() as features,
        features_kept_in(Path(features)),
        _unchanged(),
        join_world(None) as world,
        stop_signals() as stop,
    ):

        def look() -> None:
            if stop.is_set():
                raise Interrupted("Stopped while the recipes were timed; the same command starts anew.")

        def timed(threads: int) -> dict[str, list[StageCost]]:
            torch.set_num_threads(threads)
            watches = [_Stopwatch(arm, seconds, seed, world, clock, look) for arm in arms]
            _take_turns(watches)
            return {watch.label: watch.costs for watch in watches}

        try:
            began, waited = time.perf_counter(), waited_by_all_threads()
            costs = timed(threads)
            waited = (waited_by_all_threads() - waited) / (time.perf_counter() - began) / threads
            if threads == 1 or waited < BUSY or world.device.type != "cpu" or clock is time.perf_counter:
                return costs
            alone = timed(1)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                "The recipes do not fit into the GPU's memory together, which timing them needs; give --budget in "
                "steps, examples, tokens or flops."
            ) from error
    gain = max(_mean_seconds(alone[label]) / _mean_seconds(costs[label]) for label in costs)
    gain = min(max(gain, 1.0), float(threads))
    return {
        label: [replace(stage, seconds=stage.seconds / gain, first=stage.first / gain) for stage in stages]
        for label, stages in alone.items()
    }


def _mean_seconds(stages: Sequence[StageCost]) -> float:
    return sum(stage.fraction * stage.seconds for stage in stages)


def _take_turns(watches: Sequence[_Stopwatch]) -> None:
    """Time every stage of all arms."""
    for stage in range(max(watch.stages for watch in watches)):
        active = [watch for watch in watches if stage < watch.stages]
        for watch in active:
            watch.enter(stage)
        for turn in range(TURNS):
            for watch in active:
                watch.turn(turn)
        for watch in active:
            watch.leave()


@contextmanager
def _unchanged() -> Iterator[None]:
    """Restore all random states and the number of threads."""
    threads = torch.get_num_threads()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


class _ChosenBatches:
    """Stands in for a trainer's data: the batch of a chosen number. seconds: what preparing the last one took."""

    def __init__(self, data: Any, clock: Clock):
        self.data = data
        self.clock = clock
        self.number = 0
        self.seconds = 0.0

    @property
    def taken(self) -> int:
        return self.number + 1

    def __next__(self) -> Any:
        began = self.clock()
        batches = self.data.batch(self.number)
        self.seconds = self.clock() - began
        return batches

    def keys(self, number: int) -> list[str]:
        return self.data.keys(number)

    def close(self) -> None:
        self.data.close()


@dataclass
class _Turns:
    """Seconds of the steps of a stage. by_batch: later visits of each batch; first, second: visits of new batches."""

    by_batch: list[list[float]]
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)

    def cost(self, fraction: float, epoch: int) -> StageCost:
        seconds = mean(median(times) for times in self.by_batch) if self.by_batch else median(self.second)
        more = median(a - b for a, b in zip(self.first, self.second, strict=True))
        return StageCost(fraction, seconds, max(more, 0.0), epoch)


class _Stopwatch:
    """Times the steps of one arm. look: called after every step."""

    def __init__(self, arm: TimedArm, seconds: float, seed: int, world: World, clock: Clock, look: Callable[[], None]):
        self.label = arm.label
        self.seconds = seconds
        self.clock = clock
        self.world = world
        self.look = look
        look()
        record: dict[str, Any] = {"recipe": recipe_record(arm.recipe)}
        begin: dict[str, Any] = {"tokenizer": arm.tokenizer, "weights_like": arm.weights, "init": arm.init}
        run = build_run(arm.recipe, arm.corpus, record, seed, **begin, trust_code=arm.trust_code)
        # A step that is not finite takes its time like others; the run itself says what is wrong with it.
        runtime = RuntimeConfig(num_threads=0, max_nonfinite_steps=SPAN)
        self.trainer = Trainer(run, arm.corpus, Budget(examples=SPAN), seed, runtime, world)
        self.stages = len(self.trainer.stages)
        self.costs: list[StageCost] = []

    def enter(self, stage: int) -> None:
        """Begin a stage, warm up, and visit the batches that turns visit again."""
        trainer = self.trainer
        self.begin = trainer.ends[stage - 1] if stage else 0.0
        self.fraction = trainer.ends[stage] - self.begin
        trainer.progress.examples = int(SPAN * self.begin)
        trainer.step()
        self.batches = _ChosenBatches(trainer.active.data, self.clock)
        trainer.active.data = self.batches  # type: ignore[assignment]
        reader = trainer.active.reader
        self.epoch = max(1, len(reader.corpus.rows("train")) // trainer.recipe.batch_size)
        about = min(self._step(0, 0.0) for _ in range(2))  # one of them may be a pause
        affordable = int(TIMING * self.seconds * self.fraction / max(about, 1e-9))
        count = min(affordable // TURNS - 2, MAX_BATCHES, self.epoch - TURNS)
        self.short = affordable < 3 * TURNS
        self.turns = _Turns([[] for _ in range(0 if self.short else max(count, 1))])
        for number in range(1, len(self.turns.by_batch)):
            self._step(number, 0.0)

    def turn(self, number: int) -> None:
        """Visit all batches, beginning with another one in every turn, and a new one twice."""
        if self.short and number >= SHORT_TURNS:
            return
        by_batch, count = self.turns.by_batch, len(self.turns.by_batch)
        for step in range(count):
            batch = (step + number) % count
            by_batch[batch].append(self._step(batch, (step + 0.5) / count))
        new = max(count, 1) + number
        self.turns.first.append(self._step(new, 0.5))
        self.turns.second.append(self._step(new, 0.5))

    def leave(self) -> None:
        self.costs.append(self.turns.cost(self.fraction, self.epoch))
        self.turns = _Turns([])

    def _step(self, batch: int, place: float) -> float:
        """The seconds of a step on a batch. place: in the stage, from 0 to 1."""
        self.batches.number = batch
        self.trainer.progress.examples = int(SPAN * (self.begin + place * self.fraction))
        self._synchronize()
        began = self.clock()
        self.trainer.step()
        self._synchronize()
        seconds = self.clock() - began
        self.trainer.unlogged.clear()
        self.look()
        if self.world.device.type == "cpu":
            return seconds
        # Threads prepare batches while the GPU computes.
        return max(seconds - self.batches.seconds, self.batches.seconds / LOADING_THREADS)

    def _synchronize(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
