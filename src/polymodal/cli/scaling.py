"""The command that reads comparisons at several budgets as a study of scale."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polymodal.cli._flags import Arguments, leading_words, parse
from polymodal.cli._output_files import output_file
from polymodal.cli._printing import print_table, terminal
from polymodal.errors import UserError

if TYPE_CHECKING:
    from polymodal.evaluation.scaling import PowerLaw
    from polymodal.evaluation.statistics import Estimate


@dataclass(frozen=True)
class ScalingOptions:
    """Metrics and output of a study of scale."""

    metrics: str = "test*/R@10,test*/top-1"
    """Metrics, separated by commas; * stands for any characters. Error is 1 less the metric."""
    out: str | None = None
    """Output file; by default scaling.json, or scaling-2.json and so on where that is taken."""


def scaling(arguments: Arguments) -> None:
    """fit power laws to comparisons at several budgets, and test whether more data improves the metrics"""
    folders = leading_words(arguments)
    usage = "scaling COMPARISON COMPARISON ... [--metrics 'test/*/R@10'] [--out scaling.json]"
    options = parse(ScalingOptions, arguments[len(folders) :], usage, scaling)
    if not folders:
        raise UserError(f"Usage: polymodal {usage}")
    from polymodal.files import written_aside
    from polymodal.reproduce.scaling import scaling_study

    study = scaling_study(folders, [one.strip() for one in options.metrics.split(",")])
    out = output_file(options.out, "scaling.json")
    with written_aside(out.path) as aside:
        aside.write_text(json.dumps(study.to_json(), indent=2), encoding="utf-8")
    rows = [
        [name, arm, *(f"{100 * error:.1f} %" for error in errors), *_fit_cells(study.fits[name].get(arm))]
        for name, of_arm in study.errors.items()
        for arm, errors in of_arm.items()
    ]
    budgets = [f"error at {count:,.0f}" for count in next(iter(study.examples.values()))]
    print_table(["metric", "arm", *budgets, "exponent c", "limit eps"], rows, right=range(2, 4 + len(budgets)))
    for step in study.steps:
        print(f"\nFrom {step.before} to {step.after}: Wilcoxon's p = {step.p_value:.3g} over {len(step.gains)} metrics")
        print_table(
            ["metric", "change of the error", "relative reduction"],
            [[name, f"{100 * change:+.1f}", f"{100 * part:.1f} %"] for name, (change, part) in step.gains.items()],
            right=(1, 2),
        )
    if not all(study.fits.values()):
        print("\nA power law is fitted to three budgets or more.")
    terminal().print(f"\nAll numbers are in {out}.", highlight=False)


def _fit_cells(fit: PowerLaw | None) -> tuple[str, str]:
    """Exponent and limit of a power law with their intervals."""
    return ("-", "-") if fit is None else (_interval(fit.c, 1), _interval(fit.eps, 100) + " %")


def _interval(estimate: Estimate, scale: int) -> str:
    value, low, high = (scale * one for one in estimate)
    return f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else "")
