"""The command that tunes a recipe's hyper-parameters on data."""

# Annotations of options that are defined inside a function are read at run time, so they are not postponed here.

import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from polymodal import source
from polymodal.cli._budgets import budget_on, check_budget
from polymodal.cli._flags import Arguments, StartOptions, positional, short_name
from polymodal.cli._grid import parsed_grid
from polymodal.cli._next_steps import next_steps
from polymodal.cli._printing import print_table, table_console, terminal
from polymodal.cli._recipe_flags import parse_with_recipe
from polymodal.cli._sizes import fitting_batch_unless_set, say_size, size_choice, size_flags
from polymodal.cli.training import RUNTIME
from polymodal.constraints import AtLeastTwo, NonNegativeInt

USAGE = "tune RECIPE --corpus NAME | --data PATH [--budget 30m] [--grid NAME=VALUE,VALUE ...] [--out DIR]"
OF_TUNING = ("--budget", "--grid", "--eta", "--out")  # flags that `train` has not, or takes otherwise
MAX_WIDTH = 100


def tune(arguments: Arguments) -> None:
    """find the best hyper-parameters of a recipe on your data: successive halving on the validation split"""
    spec, rest = positional(arguments, USAGE)
    import tyro

    @dataclass(frozen=True)
    class Options(StartOptions):
        budget: str = "30m"
        """Training budget of all candidates together: 30m, 2h, 5000steps, 20epochs, 1e6examples. Validation does not
        count."""
        grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
        """Values to try, such as optimizer.learning-rate=1e-4,3e-4,1e-3; repeat it for further hyper-parameters, of
        which all combinations are tried. By default the recipe's own: learning rates, then weight decay or
        temperature."""
        eta: AtLeastTwo = 2
        """At the end of each rung, one in ETA candidates goes on, for ETA times as many steps."""
        seed: NonNegativeInt = 0
        """Random seed of all candidates."""
        out: str | None = None
        """Folder of the tuning; by default tuning/RECIPE-CORPUS-seed-N. The same command goes on where it stopped."""

    from polymodal import recipes

    kinds, kind = {"options": Options, "runtime": source.find(*RUNTIME)}, recipes.find_method(spec)
    parsed = parse_with_recipe(kinds, kind, rest, f"tune {spec}", tune)
    options = parsed.options
    check_budget(options.budget)
    options.check()
    grid, name = parsed_grid(options.grid, parsed.recipe), short_name(spec)
    recipe, corpus = options.prepared(source.real(parsed.recipe)), options.open()
    budget = budget_on(options.budget, corpus)
    out = Path(options.out or f"tuning/{name}-{corpus.name}-seed-{options.seed}")
    if more := size_flags(parsed, choice := size_choice(parsed, kind, corpus, str(out), budget)):
        say_size(choice)
        recipe = options.prepared(
            source.real(parse_with_recipe(kinds, kind, [*rest, *more], f"tune {spec}", tune).recipe)
        )
    recipe, changed_batch = fitting_batch_unless_set(recipe, corpus, rest)
    from polymodal.reproduce.halving import successive_halving
    from polymodal.reproduce.halving_display import HalvingDisplay

    try:
        tuning = successive_halving(
            recipe,
            corpus,
            budget,
            grid,
            out=out,
            eta=options.eta,
            seed=options.seed,
            init=options.init,
            name=name,
            runtime=source.real(parsed.runtime),
            display=HalvingDisplay(changed_batch),
            command=shlex.join(["polymodal", "train", spec, *_of_training(rest), *more]),
            trust_code=options.trust_code,
        )
    except KeyboardInterrupt:  # the second one
        raise KeyboardInterrupt("stopped at once; the same command goes on from the last checkpoints.") from None
    _print(tuning)


def _of_training(flags: Arguments) -> Arguments:
    """Return the flags that `train` has, too."""
    kept: Arguments = []
    of_tuning = False
    for flag in flags:
        if flag.startswith("--"):
            of_tuning = flag.partition("=")[0] in OF_TUNING
        if not of_tuning:
            kept.append(flag)
    return kept


def _print(tuning: Any) -> None:
    """Print the table of candidates, the best, and what comes next."""
    record = tuning.record
    right = range(len(record["grid"]) + 4)
    if tuning.finished_before:
        print(f"{tuning.directory} was finished before, and nothing was trained.")
    print()
    print_table(tuning.headings, tuning.rows, right=right)
    print("\n" + textwrap.fill(tuning.verdict, min(table_console().width, MAX_WIDTH), break_on_hyphens=False))
    terminal().print(f"{tuning.cost} All results: {tuning.directory}/tuning.json", highlight=False)
    terminal().print(f"\nThe best run again: {record['command']}", highlight=False, markup=False)
    terminal().print(next_steps(["evaluate RUN"], str(tuning.folder)), highlight=False, markup=False)
