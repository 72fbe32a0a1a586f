"""A study of scale: finished comparisons of the same arms at several budgets, read together.

Each arm's error of a metric over the examples that it has seen is fitted by a power law, and successive arms, such as
ten times the unique pairs, are compared over all metrics by Wilcoxon's signed-rank test at the largest budget.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import Any

from polymodal.errors import UserError, read_errors
from polymodal.evaluation.scaling import (
    MIN_POINTS,
    PowerLaw,
    fit_power_law,
    relative_error_reduction,
    signed_rank_test,
)
from polymodal.reproduce.compare import RESULTS


@dataclass(frozen=True)
class Step:
    """From one arm to the next at the largest budget. gains: by metric, the change of the error and its reduction as a
    fraction of the error. p_value: of the signed-rank test over all metrics."""

    before: str
    after: str
    gains: Mapping[str, tuple[float, float]]
    p_value: float


@dataclass(frozen=True)
class ScalingStudy:
    """What `scaling_study` found. fits: by metric and arm; none with fewer than three budgets. examples: of each
    budget, by arm, errors: by metric and arm, the mean over seeds at each budget."""

    arms: tuple[str, ...]
    examples: Mapping[str, tuple[float, ...]]
    errors: Mapping[str, Mapping[str, tuple[float, ...]]]
    fits: Mapping[str, Mapping[str, PowerLaw]]
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        fits = {
            metric: {arm: {"alpha": fit.alpha, "c": fit.c, "eps": fit.eps} for arm, fit in of_metric.items()}
            for metric, of_metric in self.fits.items()
        }
        steps = [vars(step) for step in self.steps]
        return {"arms": self.arms, "examples": self.examples, "errors": self.errors, "fits": fits, "steps": steps}


def scaling_study(
    folders: Sequence[Path | str], metrics: Sequence[str] = ("test*/R@10", "test*/top-1")
) -> ScalingStudy:
    """Read comparisons and fit each arm's errors; arms are in the order of the comparison, from less to more data.

    metrics: shell patterns of metrics of which higher values are better and 1 is the best; error is 1 less the metric.
    Raises UserError for a folder without a finished comparison, for different arms or seeds, and for no metric.
    """
    results = [_read(Path(folder)) for folder in folders]
    first = results[0]
    arms = tuple(first["arms"])
    for folder, result in zip(folders, results, strict=True):
        if {*result["arms"]} != {*arms} or result["seeds"] != first["seeds"]:
            raise UserError(f"{folder} has other arms or seeds than {folders[0]}; a study has the same in all of them.")
    names = [name for name in first["scores"] if all(_usable(result, name, metrics) for result in results)]
    if not names:
        raise UserError(
            f"No metric of all comparisons fits {', '.join(metrics)}; those of {folders[0]} are in its {RESULTS}."
        )
    results.sort(key=lambda result: mean(run["examples"] for run in result["runs"]))
    examples = {arm: tuple(_examples(result, arm) for result in results) for arm in arms}
    seeds = {name: {arm: [_errors(result, name, arm) for result in results] for arm in arms} for name in names}
    errors = {name: {arm: tuple(map(mean, seeds[name][arm])) for arm in arms} for name in names}
    fits = {
        name: {
            arm: fit_power_law(examples[arm], [*zip(*seeds[name][arm], strict=True)])
            for arm in arms
            if len({*examples[arm]}) >= MIN_POINTS
        }
        for name in names
    }
    return ScalingStudy(arms, examples, errors, fits, tuple(_steps(arms, errors)))


def _steps(arms: Sequence[str], errors: Mapping[str, Mapping[str, tuple[float, ...]]]) -> list[Step]:
    steps = []
    for before, after in itertools.pairwise(arms):
        ends = {name: (of_arm[before][-1], of_arm[after][-1]) for name, of_arm in errors.items()}
        gains = {name: (new - old, relative_error_reduction(old, new)) for name, (old, new) in ends.items()}
        p_value = signed_rank_test([old for old, _ in ends.values()], [new for _, new in ends.values()])
        steps.append(Step(before, after, gains, p_value))
    return steps


def _read(folder: Path) -> dict[str, Any]:
    file = folder / RESULTS if folder.is_dir() else folder
    if not file.is_file():
        raise UserError(f"{folder} holds no finished comparison; make one with: polymodal compare ... --out {folder}")
    with read_errors(file, "make the comparison again"):
        result = json.loads(file.read_text(encoding="utf-8"))
        if not {"arms", "scores", "seeds", "runs"} <= result.keys():
            raise ValueError("it is no comparison")
    return result


def _usable(result: Mapping[str, Any], name: str, metrics: Sequence[str]) -> bool:
    score = result["scores"].get(name)
    if score is None or not {*result["arms"]} <= {*score["arms"]}:  # some arm has none of it
        return False
    is_rate = score["higher_is_better"] and score["unit"] == "percent"
    return is_rate and "tail_minus_head" not in name and any(fnmatchcase(name, pattern) for pattern in metrics)


def _examples(result: Mapping[str, Any], arm: str) -> float:
    return mean(run["examples"] for run in result["runs"] if run["arm"] == arm)


def _errors(result: Mapping[str, Any], name: str, arm: str) -> list[float]:
    return [1 - value for value in result["scores"][name]["arms"][arm]["by_seed"].values()]
