"""The table at the end of a comparison, for the terminal and for the report."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from statistics import mean

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polymodal.evaluation.multiple_comparisons import holm
from polymodal.evaluation.statistics import Estimate, headlines
from polymodal.evaluation.units import number, scale
from polymodal.reproduce.result import Arm, ComparisonResult
from polymodal.reproduce.timing import few_steps
from polymodal.reproduce.verdict import MIN_SEEDS

COST = ("steps", "examples", "FLOPs", "seconds", "M parameters")


@dataclass(frozen=True)
class Row:
    """One arm. leads: its first metric is the best; difference: of that metric to the first arm, None for the first."""

    arm: Arm
    estimates: list[Estimate]
    difference: Estimate | None
    leads: bool


def headline(comparison: ComparisonResult) -> list[str]:
    """The scores that the table shows; the first decides the order: the first one that tells the best two arms apart.

    Where no headline metric does, other metrics of the same task are looked at.
    """
    names = _headline_names(comparison)
    return sorted(names, key=lambda name: name != _leading(comparison, names)) if names else names


def _headline_names(comparison: ComparisonResult) -> list[str]:
    common = comparison.score_names
    names = [score.name for score in headlines(comparison.trials[0].scores[name] for name in common)]
    names = names or common[:6]
    if names and _is_tie(comparison, names[0]):
        task = names[0].rpartition("/")[0]
        telling = (name for name in common if name.rpartition("/")[0] == task and not _is_tie(comparison, name))
        further = [] if any(not _is_tie(comparison, name) for name in names) else [*telling][:1]
        names += [name for name in further if name not in names]
    return names


def _leading(comparison: ComparisonResult, names: list[str]) -> str:
    return next((name for name in names if not _is_tie(comparison, name)), names[0])


def _means(comparison: ComparisonResult, name: str) -> list[tuple[float, Arm]]:
    """The mean of every arm over its seeds, best first."""
    means = [(mean(comparison.by_seed(arm, name).values()), arm) for arm in comparison.arms]
    return sorted(means, key=lambda pair: pair[0], reverse=comparison.higher_is_better(name))


def _is_tie(comparison: ComparisonResult, name: str) -> bool:
    """Return whether the best two arms have the same mean, and so this metric does not say which is best."""
    means = _means(comparison, name)[:2]
    return len(means) > 1 and math.isclose(means[0][0], means[1][0], rel_tol=1e-9, abs_tol=1e-12)


def rows(comparison: ComparisonResult) -> list[Row]:
    """Best first, by the metric that leads; of one seed, in the order in which they were given."""
    names = headline(comparison)
    ranked = len(comparison.seeds) > 1
    arms = [arm for _, arm in _means(comparison, names[0])] if ranked else [*comparison.arms]
    tie = _is_tie(comparison, names[0])
    return [
        Row(
            arm=arm,
            estimates=[comparison.estimate(arm, name) for name in names],
            difference=None if arm == comparison.arms[0] else comparison.difference(arm, names[0]),
            leads=ranked and not tie and arm == arms[0],
        )
        for arm in arms
    ]


def comparison_verdict(comparison: ComparisonResult) -> str:
    """Say which arm won, and whether the data can tell."""
    names = headline(comparison)
    if len(comparison.arms) == 1:
        return f"One method; its scores are those of {len(comparison.seeds)} seeds."
    if len(comparison.seeds) == 1:
        return "One seed: no ranking, since another seed may give another one; take --seeds 3 or more."
    best, second = rows(comparison)[:2]
    unit, shown = comparison.unit(names[0]), format_name(names[0])
    if _is_tie(comparison, names[0]):
        return (
            f"{_tied(comparison, names[0])} tie on {shown} with {format_metric(unit, best.estimates[0])}, and no other "
            "metric of this task tells them apart: take a harder test, or a smaller budget."
        )
    gap = comparison.difference(best.arm, names[0], second.arm)
    return (
        f"{_said_of_ties(comparison, names[0])}{best.arm.label} leads on {shown} with "
        f"{format_metric(unit, best.estimates[0])}; against {second.arm.label} the difference is "
        f"{format_difference(unit, gap)}: {_how_clear(comparison, names[0], best, gap)}."
    )


def _how_clear(comparison: ComparisonResult, name: str, best: Row, gap: Estimate) -> str:
    level = comparison.chance(name)
    low, high = best.estimates[0][1:]
    if len(comparison.seeds) < MIN_SEEDS:
        return f"no verdict, since the interval of two seeds is wide; take --seeds {MIN_SEEDS} or more"
    if comparison.test_units(name) < 2:
        return "no verdict, since the test has a single unit"
    if level is not None and not (low > level if comparison.higher_is_better(name) else high < level):
        return "and not above chance, so that nothing is learned that could be compared"
    return "clearly ahead" if gap.differs_from_zero else "not distinguishable at this budget and number of seeds"


def _tied(comparison: ComparisonResult, name: str) -> str:
    """'clip, siglip and sparc': the arms with the best mean."""
    means = _means(comparison, name)
    *others, last = [arm.label for value, arm in means if math.isclose(value, means[0][0], rel_tol=1e-9, abs_tol=1e-12)]
    return f"{', '.join(others)} and {last}"


def _said_of_ties(comparison: ComparisonResult, leading: str) -> str:
    """Say why the first headline metric does not lead, if it does not."""
    first = _headline_names(comparison)[0]
    if first == leading:
        return ""
    best = _means(comparison, first)[0][0]
    unit, bound = comparison.unit(first), 1.0 if comparison.higher_is_better(first) else 0.0
    saturates = unit == "percent" and math.isclose(best, bound, abs_tol=1e-9)
    how = f"is saturated ({_tied(comparison, first)} have {number(unit, best)})"
    if not saturates:
        how = f"is a tie ({_tied(comparison, first)} have {number(unit, best)})"
    return f"{format_name(first)[0].upper()}{format_name(first)[1:]} {how}, so the next metric leads: "


UNCORRECTED = (
    "Intervals are not corrected for the number of metrics and recipes: of 20 without a difference, 1 excludes 0."
)


def differences(comparison: ComparisonResult, name: str) -> dict[str, float]:
    """Holm's p-values of the differences of all arms to the first one; a copy of it has none."""
    others = [arm for arm in comparison.arms[1:] if not comparison.is_copy(arm)]
    return holm({arm.label: comparison.p_value(arm, name) for arm in others})


def difference_note(comparison: ComparisonResult, arm: Arm, name: str) -> str:
    """The note beside a difference to the first arm: that it is a copy, or its corrected p-value."""
    if comparison.is_copy(arm):
        return "a copy"
    p_value = differences(comparison, name).get(arm.label)
    return "" if p_value is None else format_p(p_value)


def format_p(value: float) -> str:
    """'p < 0.001' or 'p = 0.04', to be read beside a difference."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def format_name(name: str) -> str:
    """'test/text_to_image/R@10' -> 'text to image R@10'; a shifted split is named."""
    split, *rest = name.split("/")
    words = " ".join(rest).replace("_", " ")
    return words if split == "test" else f"{words} ({split.removeprefix('test_')})"


def format_metric(unit: str, estimate: Estimate) -> str:
    """'25.3 % [23.1, 27.5]'."""
    factor, digits = scale(unit, estimate.value)
    return f"{number(unit, estimate.value)} [{factor * estimate.low:.{digits}f}, {factor * estimate.high:.{digits}f}]"


def format_difference(unit: str, estimate: Estimate) -> str:
    """'+2.1 [-0.4, +4.6]', in percentage points, or in the metric's own unit."""
    factor, digits = scale(unit, estimate.value)
    value, low, high = (f"{factor * end:+.{digits}f}" for end in estimate)
    return f"{value} [{low}, {high}]"


def format_short(unit: str, estimate: Estimate, sign: str = "") -> str:
    """'25.3 ± 2.2': the value and half its interval."""
    factor, digits = scale(unit, estimate.value)
    half = max(estimate.high - estimate.value, estimate.value - estimate.low)  # a fraction's end may be cut at 0 or 1
    return f"{factor * estimate.value:{sign}.{digits}f} ± {factor * half:.{digits}f}"


def chance(comparison: ComparisonResult, name: str) -> str:
    level = comparison.chance(name)
    return "-" if level is None else number(comparison.unit(name), level)


def _difference(comparison: ComparisonResult, row: Row, name: str) -> str:
    assert row.difference is not None
    note = difference_note(comparison, row.arm, name)
    return note if note == "a copy" else f"{format_short(comparison.unit(name), row.difference, sign='+')}\n{note}"


def terminal_table(comparison: ComparisonResult, width: int = 120) -> Table:
    """Mean with half its 95 % interval, and paired difference to the first recipe with Holm's p-value.

    width: of the terminal; metrics that do not fit into it are left out, the least important first.
    """
    names = headline(comparison)[:4]
    sized = Console(width=1000)
    while True:
        table = _metrics_table(comparison, names)
        if len(names) < 2 or sized.measure(table).maximum <= width:
            return table
        names = names[:-1]


def _metrics_table(comparison: ComparisonResult, names: list[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", overflow="fold", min_width=10, max_width=34)
    for heading in (*map(format_name, names), f"against {comparison.arms[0].label}"):
        table.add_column(textwrap.fill(heading, 12), justify="right", no_wrap=True)
    for row in rows(comparison):
        label = escape(row.arm.label)
        table.add_row(
            f"[bold]{label}[/bold]" if row.leads else label,
            *(format_short(comparison.unit(name), e) for name, e in zip(names, row.estimates, strict=False)),
            "" if row.difference is None else _difference(comparison, row, names[0]),
        )
    table.add_row("[dim]chance", *(f"[dim]{chance(comparison, name)}" for name in names))
    return table


def cost_table(comparison: ComparisonResult) -> Table:
    """Steps, examples, FLOPs and seconds of a run of every arm, in their order."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cost of a run", overflow="fold", min_width=10, max_width=34)
    for heading in COST:
        table.add_column(textwrap.fill(heading, 10), justify="right", no_wrap=True)
    for arm in comparison.arms:
        table.add_row(escape(arm.label), *format_cost(comparison.cost(arm)))
    return table


def unequal_parameters(comparison: ComparisonResult) -> str:
    """Say which arms have other numbers of parameters than the first, by more than 5 %; empty where none has."""
    first = comparison.cost(comparison.arms[0])["parameters"]
    factors = {arm.label: comparison.cost(arm)["parameters"] / first for arm in comparison.arms}
    unequal = [f"{label} has {factor:.2f} x" for label, factor in factors.items() if abs(factor - 1) > 0.05]
    if not unequal:
        return ""
    return f"Not equal in size: {', '.join(unequal)} the parameters of {comparison.arms[0].label}."


def format_cost(cost: dict[str, float]) -> list[str]:
    """The cells of `COST`: '350', '89,600', '1.2e+12', '25.1', '0.21'."""
    return [
        f"{cost['steps']:,.0f}",
        f"{cost['examples']:,.0f}",
        f"{cost['flops']:.2g}",
        f"{cost['seconds']:.1f}",
        f"{cost['parameters'] / 1e6:.2f}",
    ]


def steps_note(comparison: ComparisonResult) -> str:
    """How a budget in seconds became steps, and which arms have few of them."""
    if comparison.budget.seconds is None:
        return ""
    steps = {arm.label: comparison.cost(arm)["steps"] for arm in comparison.arms}
    return (
        "Before the first run all recipes were timed in alternation; each trains for the steps that fit into "
        f"{comparison.budget}, the same for every seed. {few_steps(steps, str(comparison.budget))}"
    )
