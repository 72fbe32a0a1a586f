"""Learning curves of arms on the validation split."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from polymodal.evaluation.units import axis_label, scale
from polymodal.reproduce.leaderboard import format_name
from polymodal.reproduce.result import ComparisonResult

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "svg.hashsalt": "polymodal",
}


def axes_of(columns: int, width: float, height: float) -> tuple[Figure, list]:
    """A matplotlib figure in inches with a row of plots."""
    plt.rcParams.update(STYLE)
    fig, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    return fig, list(axes[0])


def svg(fig: Figure) -> str:
    """The figure as an element of a page."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(fig)
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def validation_metric(comparison: ComparisonResult, wanted: Sequence[str] = ()) -> str:
    """What curves show: the first of `wanted`, which are metrics of the test split, that was logged during training.

    Without one it is the headline metric of the validation, else the first, else ''.
    """
    logged = (
        name for trial in comparison.trials for entry in trial.run.history for name in entry.get("validation", ())
    )
    names = list(dict.fromkeys(logged))
    kinds = _validation_kinds(comparison)
    placed = [(kinds[name]["headline"], name) for name in names if kinds.get(name, {}).get("headline") is not None]
    likely = [name.replace("test/", "validation/", 1) for name in wanted]
    likely += [name for _, name in sorted(placed)] + names
    return next((name for name in likely if name in names), "")


def validation_unit(comparison: ComparisonResult, name: str) -> str:
    """The unit of a metric of the validation split."""
    return _validation_kinds(comparison).get(name, {}).get("unit", "percent")


def _validation_kinds(comparison: ComparisonResult) -> dict[str, dict[str, Any]]:
    return {name: kind for trial in comparison.trials for name, kind in trial.run.record.get("metrics", {}).items()}


def learning_curves(comparison: ComparisonResult, wanted: Sequence[str]) -> dict[str, Any] | None:
    """For each arm the steps, and the mean over seeds of a validation metric after them; None without one.

    wanted: metrics of the test split, the most important first.
    """
    name = validation_metric(comparison, wanted)
    if not name:
        return None
    arms = {}
    for arm in comparison.arms:
        looks = [_looks(trial.run.history, name) for trial in comparison.of(arm)]
        together = list(zip(*looks, strict=False))  # with a budget in tokens, seeds may differ
        arms[arm.label] = {
            "steps": [round(mean(step for step, _ in look)) for look in together],
            "values": [round(mean(value for _, value in look), 5) for look in together],
        }
    speed_ups = speed_up_factors(comparison, wanted)
    return {"metric": name, "unit": validation_unit(comparison, name), "arms": arms, "speed_up": speed_ups}


Curve = Sequence[tuple[float, float]]  # of what was spent, such as steps or FLOPs, and the loss after it


def speed_up_factor(baseline: Curve, other: Curve) -> float | None:
    """What the baseline spent over what the other spends to reach the baseline's final loss (MoMa's eta).

    None where the other never reaches it. Between two points of a curve the loss is taken to be linear.
    """
    spent, final = baseline[-1]
    if other[0][1] <= final:
        return spent / other[0][0]
    for (before, high), (after, low) in itertools.pairwise(other):
        if low <= final < high:
            return spent / (before + (after - before) * (high - final) / (high - low))
    return None


def speed_up_factors(comparison: ComparisonResult, wanted: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """By validation loss and arm, the speed-up factor in training FLOPs over the first arm; means over seeds.

    wanted: metrics of the test split, of which those count that are lower when better and were logged on validation.
    """
    factors: dict[str, dict[str, float | None]] = {}
    for name in wanted:
        scores = [trial.scores[name] for trial in comparison.trials if name in trial.scores]
        if not scores or scores[0].higher_is_better:
            continue
        logged, curves = name.replace("test/", "validation/", 1), []
        for arm in comparison.arms:
            seeds = [_looks(trial.run.history, logged) for trial in comparison.of(arm)]
            cost = comparison.cost(arm)
            flops = cost["flops_an_example"] * cost["examples"] / cost["steps"]
            looks = list(zip(*seeds, strict=False))
            curves.append([(flops * mean(s for s, _ in look), mean(v for _, v in look)) for look in looks])
        baseline, *others = curves
        if all(map(len, curves)):
            labels = [arm.label for arm in comparison.arms[1:]]
            factors[logged] = {
                label: speed_up_factor(baseline, other) for label, other in zip(labels, others, strict=True)
            }
    return factors


def _looks(history: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    checked = [entry for entry in history if "validation" in entry]
    return [(entry["step"], entry["validation"][name]) for entry in checked if name in entry["validation"]]


def plot_curves(curves: dict[str, Any]) -> str:
    """What `learning_curves` found, as an SVG."""
    name, unit = curves["metric"], curves["unit"]
    fig, (axes,) = axes_of(1, 6, 2.8)
    for (label, curve), color in zip(curves["arms"].items(), COLORS * 9, strict=False):
        factor, _ = scale(unit, 0.0)
        values = [factor * value for value in curve["values"]]
        axes.plot(curve["steps"], values, marker="o", markersize=3, linewidth=1.4, color=color, label=label)
    axes.set(xlabel="steps", ylabel=axis_label(unit), title=f"{format_name(name)} while training")
    axes.legend(frameon=False)
    return svg(fig)
