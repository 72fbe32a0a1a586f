"""Commands that measure methods: compare, reproduce."""

# Annotations of options that are defined inside a function are read at run time, so they are not postponed here.

import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polymodal import source
from polymodal.cli._budgets import budget_on, check_budget
from polymodal.cli._flags import (
    Arguments,
    RunOptions,
    TowerOptions,
    TrustOptions,
    leading_words,
    parse,
    positional,
    short_name,
)
from polymodal.cli._grid import varied_values
from polymodal.cli._printing import print_table, table_console, terminal
from polymodal.cli._recipe_flags import parse_with_recipe
from polymodal.cli._sizes import size_of_arms, with_fitting_batch
from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.size_names import Size
from polymodal.errors import UserError
from polymodal.types import Budget

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus

BUDGET = "60s"  # of `compare`, unless given


@dataclass(frozen=True)
class JobOptions:
    """Parallelism of runs."""

    jobs: PositiveInt = 1
    """Number of runs in parallel, each with an equal part of the CPU cores, or on the next of several GPUs. Useful for
    runs of a minute and more."""


@dataclass(frozen=True)
class CompareOptions(RunOptions, JobOptions):
    budget: str | None = None
    """Budget per run: 200steps, 3epochs, 5000examples, 1e6tokens, 1e15flops, 60s (the default), 20m, 2h. A time is
    turned into a number of steps for each recipe, by timing all of them in alternation before the first run."""
    steps_from: str | None = None
    """results.json of an earlier comparison, whose budget and number of steps of each recipe are used, and lead to the
    same weights; in place of --budget."""
    seeds: PositiveInt = 3
    """Number of paired seeds. One gives no ranking, and fewer than three give no verdict."""
    validations: NonNegativeInt = 8
    """Number of validations of each run, evenly over the budget, for the curves of the report; 0: none."""
    family: str | None = None
    """Family whose recipes are compared, besides the named ones: all that train on the data, with a note on each of the
    others about what the data lack. `polymodal list` shows the families."""
    size: Size | None = None
    """Size of all recipes without one of their own: tiny, small, base, large. By default chosen by data and machine."""
    out: str = "comparison"
    """Folder for results.json, report.html and the runs; the same command resumes."""


def _budget_and_steps(budget: str | None, steps_from: str | None) -> tuple[Budget | None, dict[str, int] | None]:
    """The budget, if one is given, and the recorded steps of each arm. Raises UserError where both are given."""
    if steps_from is None:
        return Budget.parse(budget) if budget else None, None
    if budget:
        raise UserError(f"Give --budget or --steps-from, not both: {steps_from} holds the budget of its steps.")
    from polymodal.reproduce.timing import recorded_steps

    return recorded_steps(Path(steps_from))


def compare(arguments: Arguments) -> None:
    """train several recipes at equal budget on paired seeds and rank them"""
    import tyro

    @dataclass(frozen=True)
    class Options(CompareOptions):
        vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
        """Vary one hyper-parameter of a single recipe at a time, such as optimizer.learning-rate=1e-4,3e-4; of a choice
        its name alone, such as image.pool-type, takes all values. Repeat it for further hyper-parameters. The recipe as
        given is the first arm."""

    specs = [*leading_words(arguments)]
    options = parse(Options, arguments[len(specs) :], 'compare RECIPE "RECIPE --flag 1" ./mine.py', compare)
    if not specs and options.family is None:
        raise UserError("Name the recipes to compare: polymodal compare clip siglip --corpus emoji.")

    parsed = [_parsed(spec) for spec in specs]
    if options.vary and (len(specs) != 1 or options.family is not None):
        raise UserError("--vary takes a single recipe, of which one hyper-parameter at a time is changed.")
    axes = varied_values(options.vary, parsed[0].recipe) if options.vary else {}
    options.check()
    if options.budget is not None:
        check_budget(options.budget)
    given = None if options.budget and "epoch" in options.budget.lower() and not options.steps_from else options.budget
    budget, steps = _budget_and_steps(given, options.steps_from)
    from polymodal import reproduce
    from polymodal.reproduce.leaderboard import comparison_verdict, cost_table, terminal_table, unequal_parameters

    corpus = options.open()
    if options.family is not None:
        members = [name for name in _of_family(options.family, corpus) if name not in specs]
        specs, parsed = specs + members, parsed + [_parsed(name) for name in members]
    budget = budget or budget_on(options.budget or BUDGET, corpus)
    size = options.size or size_of_arms(parsed, corpus, budget)
    arms = [
        reproduce.Arm(label, with_fitting_batch(recipe, corpus, _words(spec), label))
        for spec, label, recipe in _labeled(specs, size, axes)
    ]
    comparison = reproduce.compare(
        arms,
        corpus,
        budget,
        options.seeds,
        options.out,
        jobs=options.jobs,
        trust_code=options.trust_code,
        steps=steps,
        validations=options.validations,
    )
    tables = table_console()
    print("\n" + textwrap.fill(comparison_verdict(comparison), min(tables.width, 120), break_on_hyphens=False) + "\n")
    tables.print(terminal_table(comparison, tables.width))
    tables.print()
    tables.print(cost_table(comparison))
    if axes and (note := unequal_parameters(comparison)):
        print("\n" + textwrap.fill(note, min(tables.width, 120), break_on_hyphens=False))
    terminal().print(f"\nReport: {options.out}/report.html   all metrics: {options.out}/results.json", highlight=False)


def _labeled(specs: list[str], size: str | None, axes: dict[str, list[Any]]) -> list[tuple[str, str, Any]]:
    """Return specification, label and recipe of each arm. axes: varied values of a single recipe."""
    made = [(spec, _arm_label(spec), _recipe_with_flags(spec, size)) for spec in specs]
    if not axes:
        return made
    from polymodal.reproduce.varying import one_at_a_time

    [(spec, label, recipe)] = made
    return [(spec, name, one) for name, one in one_at_a_time(recipe, axes, label).items()]


def _of_family(family: str, corpus: "Corpus") -> list[str]:
    """Return the recipes of the family that train on the corpus; print what it lacks for the others."""
    from polymodal.recipes.suitability import family_for

    fitting, lacking = family_for(family, corpus)
    for name, what in lacking.items():
        print(f"{name} is left out. What the data lacks for it: {'; '.join(what)}.", file=sys.stderr)
    return fitting


def _recipe_with_flags(spec: str, size: str | None = None) -> Any:
    """Parse a recipe with flags: 'sparc --local-weight 1'. size: where the flags name none."""
    given = _parsed(spec)
    if size and not (given.preset.size or given.preset.paper):
        given = _parsed(f"{spec} --size {size}")
    return given.towers.applied(source.real(given.recipe))


def _parsed(spec: str) -> Any:
    """Parse a recipe with flags, as a stand-in. Raises UserError before slow imports."""
    from polymodal import recipes

    name, *flags = _words(spec)
    usage = f"train {name}"  # whose help has all of these flags
    return parse_with_recipe({"towers": TowerOptions}, recipes.find_method(name), flags, usage, compare)


def _words(spec: str) -> list[str]:
    try:
        return shlex.split(spec) or [""]
    except ValueError as error:
        raise UserError(f"{spec} is no recipe with flags: {str(error).lower()}.") from error


def _arm_label(spec: str) -> str:
    name, *flags = _words(spec)
    return " ".join([short_name(name), *flags])


def reproduce(arguments: Arguments) -> None:
    """test a paper's claim against its baseline: same data, same budget, paired seeds, a verdict"""
    spec, rest = positional(arguments, "reproduce RECIPE [--budget 200steps] [--seeds 5] [--out DIR]")

    @dataclass(frozen=True)
    class Options(JobOptions, TrustOptions):
        budget: str | None = None
        """Budget per run, instead of the claim's own."""
        seeds: PositiveInt | None = None
        """Number of paired seeds, instead of the claim's own."""
        steps_from: str | None = None
        """results.json of an earlier reproduction, whose budget and number of steps of each arm are used, in place of
        --budget."""
        claim: str = "claim"
        """Name of the claim, if the recipe has several."""
        out: str | None = None
        """Folder for claim.json, report.html and the runs; by default reproduce/RECIPE, or reproduce/RECIPE-CLAIM
        for a further claim."""
        again: bool = False
        """Measure a claim once more that was measured with the same code; its result keeps the earlier ones."""
        tune: bool = False
        """First train every arm with each of the claim's tuning values, and take its best by the validation split."""

    options = parse(Options, rest, "reproduce RECIPE", reproduce)
    budget, steps = _budget_and_steps(options.budget, options.steps_from)
    from polymodal.recipes import FIRST_CLAIM
    from polymodal.reproduce.claim import reproduce as test_claim

    out = options.out or f"reproduce/{short_name(spec)}" + f"-{options.claim}" * (options.claim != FIRST_CLAIM)
    result, comparison = test_claim(
        spec,
        out,
        budget,
        options.seeds,
        name=options.claim,
        jobs=options.jobs,
        trust_code=options.trust_code,
        steps=steps,
        again=options.again,
        tune=options.tune,
    )
    _print_claim(result, comparison, out)


def _print_claim(result: dict[str, Any], comparison: Any, out: str) -> None:
    from polymodal.reproduce.claim_text import claim_rows, decision_sentence, how_often, secondary_sentence
    from polymodal.reproduce.leaderboard import cost_table

    console = terminal()
    console.print(f"[bold]{result['claim']}[/bold]")
    arms = [*result["cost"]]
    print_table(
        ["metric", "chance", *arms, "treatment against baseline"],
        claim_rows(result),
        right=range(1, 3 + len(arms)),
    )
    console.print()
    table_console().print(cost_table(comparison))
    print("\n" + secondary_sentence(result))
    if earlier := how_often(result):
        print(earlier)
    console.print(f"\nVerdict: {decision_sentence(result, '[bold]', '[/bold]')}   {out}/claim.json", highlight=False)
