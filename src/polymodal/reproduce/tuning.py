"""Tune the arms of a claim alike: the same values of a hyper-parameter for each, judged on the validation split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polymodal.claim import Claim
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.evaluation import validation
from polymodal.hyper_parameters import with_value
from polymodal.reproduce.compare import Start, _Plan, _resumable
from polymodal.reproduce.display import Display
from polymodal.reproduce.result import Arm
from polymodal.reproduce.timing import START
from polymodal.training.folder_lock import writes
from polymodal.training.run import write_json
from polymodal.types import Budget

TUNING = "tuning.json"
SEED = 1000  # none of those that measure


def check_grid(tuning: Mapping[str, Sequence[Any]]) -> None:
    """Raise UserError for a claim without values to tune."""
    if not tuning:
        raise UserError("This claim names no values to tune; add tuning={'learning_rate': (5e-4, 1e-3)} to it.")


def grid(tuning: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """All combinations of the values."""
    for values in itertools.product(*tuning.values()):
        yield dict(zip(tuning, values, strict=True))


@writes("out")
def tune(
    arms: Sequence[Arm],
    claim: Claim,
    corpus: Corpus,
    budget: Budget,
    out: Path,
    start: Start | None = None,
    trust_code: bool = False,
) -> tuple[list[Arm], dict[str, Any]]:
    """Train arms with every combination of values, at a seed of their own; return all arms with their best, and the
    record.

    A run has `claim.tuning_fraction` of the budget. The best is that with the best validation metric at the end: the
    first deciding metric that is logged, else the headline metric. Arms in `claim.tuned_like` take the best of another
    one. No test split is read. Finished runs in `out` are not made again; writes `tuning.json`.
    Raises UserError without values, or without a validation split.
    """
    check_grid(claim.tuning)
    budget = budget.scaled(claim.tuning_fraction)
    tuned_arms = [arm for arm in arms if arm.label not in claim.tuned_like]
    if validation(corpus) is None:
        raise UserError(f"Tuning needs a validation split, which '{corpus.name}' has not.")
    display = Display([arm.label for arm in tuned_arms] + [START] * (start is not None), [SEED], budget)
    with display:
        plan = _Plan(tuned_arms, {}, start, out, trust_code, claim.budget_fractions, validations=1)
        plan = plan.in_steps(corpus, budget, [SEED], display, out, jobs=1, given=None)
        with _resumable(out):
            begin = plan.beginning(corpus, SEED, display, out)
    tried: dict[str, list[dict[str, Any]]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for arm in tuned_arms:
        tried[arm.label] = []
        for number, values in enumerate(grid(claim.tuning)):
            display = Display([arm.label], [SEED], plan.budgets[arm.label])
            with display, _resumable(out):
                folder = out / arm.folder / f"{number}"
                tuned = _with_values(arm, values)
                run = plan.trained(tuned, corpus, SEED, begin, display, folder)
            looks = [entry["validation"] for entry in run.history if "validation" in entry]
            kinds |= run.record.get("metrics", {})
            tried[arm.label].append({"values": values, "validation": looks[-1] if looks else {}})
    metric = _metric(tried, kinds, claim.deciding_metrics)
    higher = kinds.get(metric, {}).get("higher_is_better", True)
    best = _best_values(tried, metric, higher)
    best |= {label: best[other] for label, other in claim.tuned_like.items()}
    record = {
        "grid": {name: list(values) for name, values in claim.tuning.items()},
        "budget": str(budget),
        "tuned_like": dict(claim.tuned_like),
        "metric": metric,
        "higher_is_better": higher,
        "seed": SEED,
        "arms": {
            label: [{"values": one["values"], "value": one["validation"][metric]} for one in every]
            for label, every in tried.items()
        },
        "best": best,
    }
    write_json(out / TUNING, record)
    return [_with_values(arm, best[arm.label]) for arm in arms], record


def _best_values(
    tried: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, higher_is_better: bool
) -> dict[str, dict[str, Any]]:
    """Return the values of the best run of each arm; a run whose metric is not finite is the worst."""

    def quality(one: Mapping[str, Any]) -> float:
        value = one["validation"][metric] * (1 if higher_is_better else -1)
        return value if math.isfinite(value) else -math.inf

    return {label: max(every, key=quality)["values"] for label, every in tried.items()}


def _with_values(arm: Arm, values: Mapping[str, Any]) -> Arm:
    recipe = arm.recipe
    for name, value in values.items():
        recipe = with_value(recipe, name, value)
    return Arm(arm.label, recipe)


def _metric(
    tried: Mapping[str, Sequence[Mapping[str, Any]]], kinds: Mapping[str, Mapping[str, Any]], deciding: Sequence[str]
) -> str:
    """What all runs logged: the first of the deciding metrics on the validation split, else the headline one."""
    logged = [one["validation"] for every in tried.values() for one in every]
    common = [name for name in logged[0] if all(name in names for names in logged)]
    if not common:
        raise UserError("Tuning needs a metric of the validation split, and these methods have none in common.")
    placed = sorted(common, key=lambda name: (kinds.get(name, {}).get("headline") is None,
                                              kinds.get(name, {}).get("headline") or 0))  # fmt: skip
    wanted = [name.replace("test/", "validation/", 1) for name in deciding]
    return next((name for name in [*wanted, *placed] if name in common), placed[0])
