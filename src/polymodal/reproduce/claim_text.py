"""What a result of a claim says, for the terminal and for the page of its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal.claim import TO_BE_MEASURED_AGAIN, is_current
from polymodal.evaluation.statistics import Estimate
from polymodal.evaluation.units import number, scale
from polymodal.reproduce.leaderboard import format_difference, format_metric, format_p

EARLIER = (
    "It was measured with an earlier method of intervals, some of which did not cover, so no verdict counts until it "
    "is measured again."
)
MAX_NAMED = 6  # differences in a sentence; the table marks all of them
MARK = "*"  # beside a difference that stays below 0.05 after correction


def decision_sentence(result: Mapping[str, Any], before: str = "**", after: str = "**") -> str:
    """The verdict with the deciding differences, the reason where there is none, and what is left open.

    before, after: marks around the verdict.
    """
    units = result["units"]
    if not is_current(result):
        unit, level = units[result["metric"]], result["chance"]
        chance = f" (chance {number(unit, level)})" if level is not None else ""
        difference = format_difference(unit, Estimate(**result["difference"]))
        return f"{before}{TO_BE_MEASURED_AGAIN}{after}. {EARLIER} By {result['metric']}: {difference}{chance}."
    parts = []
    for one in result["deciding"]:
        unit, level, margin = units[one["metric"]], one["chance"], one["margin"]
        notes = [f"chance {number(unit, level)}"] if level is not None else []
        notes += [f"may be worse by {number(unit, margin)}"] * (margin > 0)
        text = f"{one['metric']}: {format_difference(unit, Estimate(**one['difference']))}"
        parts.append(text + f" ({', '.join(notes)})" * bool(notes))
    why = f" ({result['why']})" if result["why"] else ""
    open_effects = [
        f"{_effect(units[metric], value)} by {metric}" for metric, value in result["left_open"].items() if value > 0
    ]
    left_open = f" An improvement of at most {' and '.join(open_effects)} is left open." if open_effects else ""
    return f"{before}{result['verdict']}{after}{why}, by {' and '.join(parts)}.{left_open}"


def _effect(unit: str, value: float) -> str:
    """'2.9 points' or '0.12'."""
    factor, digits = scale(unit, value)
    return f"{factor * value:.{digits}f}" + (" points" if unit == "percent" else "")


def secondary_sentence(result: Mapping[str, Any]) -> str:
    """What the intervals of all other metrics and arms are worth."""
    count = result.get("secondary_comparisons", 0)
    different = [
        f"{metric} of {arm} ({format_p(one['p_holm'])})"
        for metric, arms in result["metrics"].items()
        for arm, one in arms.items()
        if one.get("p_holm", 1.0) < 0.05
    ]
    named = f"these differ ({MARK}): {', '.join(different)}"
    if len(different) > MAX_NAMED:
        named = f"{len(different)} differ ({MARK})"
    marked = f" After Holm's correction over {count} such comparisons {named}."
    none = f" After Holm's correction over {count} such comparisons none differs."
    corrected = (marked if different else none) if is_current(result) and count else ""
    return (
        f"Brackets: 95 % intervals; those of metrics that do not decide are not corrected for their number.{corrected}"
    )


def claim_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """For each metric its chance, the value of each arm, and the difference of the treatment to the baseline."""
    return [
        [
            metric,
            chance_of(result, metric),
            *(measured(result, metric, arm) for arm in result["cost"]),
            _gap(result, metric),
        ]
        for metric in result["metrics"]
    ]


def chance_of(result: Mapping[str, Any], metric: str) -> str:
    """The chance level; of results of the earlier method only that of the deciding metric is known."""
    levels = result.get("chances", {result["metric"]: result["chance"]})
    level = levels.get(metric)
    return "–" if level is None else number(result["units"][metric], level)


def measured(result: Mapping[str, Any], metric: str, arm: str) -> str:
    """A value with its interval, and a mark where its difference is significant; a dash for an arm without score."""
    record = result["metrics"][metric].get(arm)
    if record is None:
        return "–"
    value = format_metric(result["units"][metric], Estimate(*(record[end] for end in ("value", "low", "high"))))
    if record.get("copy_of_baseline"):
        return f"{value} (copy of the baseline)"
    return value + f" {MARK}" * (record.get("p_holm", 1.0) < 0.05)


def _gap(result: Mapping[str, Any], metric: str) -> str:
    record = result["metrics"][metric].get("treatment", {})
    if "difference" not in record:
        return "–"
    return format_difference(result["units"][metric], Estimate(**record["difference"]))


def how_often(result: Mapping[str, Any]) -> str:
    """How often the claim was measured, and what came out each time; '' for the first time."""
    if not (earlier := result.get("history", [])):
        return ""
    outcomes = []
    for one in earlier:
        unit = result["units"].get(one["metric"], "percent")
        method = "" if is_current(one) else ", earlier method of intervals"
        code = f", code {one['committed']['code']}" if one.get("committed") else ""
        difference = format_difference(unit, Estimate(**one["difference"]))
        outcomes.append(f"{one['verdict']} ({difference}, {len(one['seeds'])} seeds, {one['budget']}{code}{method})")
    return f"Measured {len(earlier) + 1} times; before: {'; '.join(outcomes)}."


def how_tuned(result: Mapping[str, Any]) -> str:
    """Which values each arm was tuned by, or that none are recorded."""
    tuning = result.get("tuning")
    if not tuning:
        return "No tuning of the arms is recorded."
    tried = " and ".join(f"{name} {', '.join(map(_value, values))}" for name, values in tuning["grid"].items())
    best = ", ".join(
        f"{label} {', '.join(_value(value) for value in values.values())}" for label, values in tuning["best"].items()
    )
    budget = f" after {tuning['budget']}" if "budget" in tuning else ""
    like = "".join(f"; {label} has the values of {other}" for label, other in tuning.get("tuned_like", {}).items())
    return (
        f"All arms are tuned alike: the best of {tried} by {tuning['metric']}{budget} is taken for each ({best}{like})."
    )


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
