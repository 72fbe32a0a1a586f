"""The table at the end of a comparison, for the terminal and for the report."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

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
    cost: dict[str, float]
    leads: bool


def headline(comparison: ComparisonResult) -> list[str]:
    """The scores that the table shows; the first decides the order."""
    common = comparison.score_names
    names = [score.name for score in headlines(comparison.trials[0].scores[name] for name in common)]
    return names or common[:6]


def rows(comparison: ComparisonResult) -> list[Row]:
    """Best first, by the first headline metric; of one seed, in the order in which they were given."""
    names = headline(comparison)
    arms = list(comparison.arms)
    if ranked := len(comparison.seeds) > 1:
        arms.sort(
            key=lambda arm: comparison.estimate(arm, names[0]).value,
            reverse=comparison.higher_is_better(names[0]),
        )
    return [
        Row(
            arm=arm,
            estimates=[comparison.estimate(arm, name) for name in names],
            difference=None if arm == comparison.arms[0] else comparison.difference(arm, names[0]),
            cost=comparison.cost(arm),
            leads=ranked and arm == arms[0],
        )
        for arm in arms
    ]


def comparison_verdict(comparison: ComparisonResult) -> str:
    """One sentence that says which arm won, and whether the data can tell."""
    names = headline(comparison)
    if len(comparison.arms) == 1:
        return f"One method; its scores are those of {len(comparison.seeds)} seeds."
    if len(comparison.seeds) == 1:
        return "One seed: no ranking, since another seed may give another one; take --seeds 3 or more."
    best, second = rows(comparison)[:2]
    unit = comparison.unit(names[0])
    gap = comparison.difference(best.arm, names[0], second.arm)
    clear = "clearly ahead" if gap.differs_from_zero else "not distinguishable at this budget and number of seeds"
    level = comparison.chance(names[0])
    low, high = best.estimates[0][1:]
    if level is not None and not (low > level if comparison.higher_is_better(names[0]) else high < level):
        clear = "and not above chance, so that nothing is learned that could be compared"
    if len(comparison.seeds) < MIN_SEEDS:
        clear = f"no verdict, since the interval of two seeds is wide; take --seeds {MIN_SEEDS} or more"
    elif comparison.test_units(names[0]) < 2:
        clear = "no verdict, since the test has a single unit"
    return (
        f"{best.arm.label} leads on {format_name(names[0])} with {format_metric(unit, best.estimates[0])}; against "
        f"{second.arm.label} the difference is {format_difference(unit, gap)}: {clear}."
    )


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


def terminal_table(comparison: ComparisonResult) -> Table:
    """Mean with half its 95 % interval, and paired difference to the first recipe with Holm's p-value."""
    names = headline(comparison)[:4]
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", overflow="fold", min_width=16)
    for heading in (*map(format_name, names), f"against {comparison.arms[0].label}"):
        table.add_column(textwrap.fill(heading, 12), justify="right", no_wrap=True)
    for row in rows(comparison):
        table.add_row(
            f"[bold]{row.arm.label}[/bold]" if row.leads else row.arm.label,
            *(format_short(comparison.unit(name), e) for name, e in zip(names, row.estimates, strict=False)),
            "" if row.difference is None else _difference(comparison, row, names[0]),
        )
    table.add_row("[dim]chance", *(f"[dim]{chance(comparison, name)}" for name in names))
    return table


def cost_table(comparison: ComparisonResult) -> Table:
    """Steps, examples, FLOPs and seconds of a run of every arm, in their order."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cost of a run", overflow="fold", min_width=16)
    for heading in COST:
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in comparison.arms:
        table.add_row(arm.label, *format_cost(comparison.cost(arm)))
    return table


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
