"""The plan of a tuning: candidates, rungs, and the steps that keep all of them within the budget together."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from polymodal.constraints import validate_constraints, validate_types
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.hyper_parameters import with_value
from polymodal.reproduce.display import Display
from polymodal.reproduce.timing import TIMING, TimedArm, budgets_in_steps
from polymodal.reproduce.tuning import grid as combinations
from polymodal.training.initialization import recipe_started_from
from polymodal.types import Budget

MAX_CANDIDATES = 256


@dataclass(frozen=True)
class Candidate:
    """A combination of values. steps: at the end of each rung; the last is the length of the schedule."""

    number: int
    values: Mapping[str, Any]
    recipe: Any
    steps: tuple[int, ...] = ()


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


def with_steps(
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
