"""Commands about training: train, resume, runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polymodal import source
from polymodal.cli._budgets import budget_on, check_budget
from polymodal.cli._flags import (
    HELP,
    Arguments,
    JsonOptions,
    StartOptions,
    TrustOptions,
    leading_words,
    parse,
    parse_together,
    positional,
    short_name,
)
from polymodal.cli._next_steps import hints, next_steps
from polymodal.cli._printing import megabytes, print_json, print_table, terminal
from polymodal.cli._recipe_flags import parse_with_recipe
from polymodal.cli._sizes import size_choice, size_flags, with_fitting_batch
from polymodal.constraints import NonNegativeInt
from polymodal.errors import unknown
from polymodal.types import Budget

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus
    from polymodal.training.runtime import RuntimeConfig
    from polymodal.training.sizes import SizeChoice

RUNTIME = "polymodal.training.runtime", "RuntimeConfig"


@dataclass(frozen=True)
class TrainOptions(StartOptions):
    budget: str = "60s"
    """Training budget: 200steps, 3epochs, 5000examples, 1e6tokens, 1e15flops, 60s, 20m, 2h."""
    seed: NonNegativeInt = 0
    """Random seed of weights, order of examples and all sampling."""
    out: str | None = None
    """Folder of the run; by default runs/RECIPE-CORPUS-seed-N."""
    early_stop: NonNegativeInt = 0
    """Stop after N validations in a row without a better headline metric; 0 never stops."""
    validations: NonNegativeInt = 8
    """Number of validations, evenly over the budget; 0: none. With more of them, the N of --early-stop are shorter."""
    keep: Literal["best", "last"] | None = None
    """Weights that the run ends with: best on validation, or last. By default best with --early-stop, else last."""


def train(arguments: Arguments) -> None:
    """pre-train a recipe on a corpus or on your own data"""
    spec, rest = positional(arguments, "train RECIPE --corpus NAME | --data PATH [--budget 60s] [--seed 0] [--out DIR]")
    from polymodal import recipes

    kinds, kind = {"options": TrainOptions, "runtime": source.find(*RUNTIME)}, recipes.find_method(spec)
    parsed = parse_with_recipe(kinds, kind, rest, f"train {spec}", train)
    options = parsed.options
    check_budget(options.budget)
    options.check()
    recipe, corpus = options.prepared(source.real(parsed.recipe)), options.open()
    name = short_name(spec)
    out = options.out or f"runs/{name}-{corpus.name}-seed-{options.seed}"
    budget = budget_on(options.budget, corpus)
    choice = size_choice(parsed, kind, corpus, out, budget)
    if more := size_flags(parsed, choice):
        larger = parse_with_recipe(kinds, kind, [*rest, *more], f"train {spec}", train).recipe
        recipe = options.prepared(source.real(larger))
    recipe, runtime = with_fitting_batch(recipe, corpus, rest), source.real(parsed.runtime)
    further = {name: getattr(options, name) for name in ("early_stop", "keep", "validations", "trust_code")}
    _train(recipe, corpus, budget, options.seed, out, name, runtime, options.init, further, choice)


def resume(arguments: Arguments) -> None:
    """resume a run that was stopped"""
    path, rest = positional(arguments, "resume RUN")
    directory, runtime_class = Path(path), source.find(*RUNTIME)
    record = {} if HELP & {*rest} else _record(directory)
    kept = _kept(runtime_class, record["runtime"], directory) if record else runtime_class()
    parsed = parse_together({"runtime": kept, "trust": TrustOptions}, rest, "resume RUN", resume)
    trust_code = parsed.trust.trust_code
    from polymodal.corpora.registry import reopen
    from polymodal.training.recipe_record import recipe_from_record

    recipe = recipe_from_record(record["recipe"], directory, trust_code)
    corpus = reopen(record["corpus"])
    _train(
        recipe,
        corpus,
        Budget.parse(record["budget"]),
        record["seed"],
        str(directory),
        record["recipe"]["name"],
        source.real(parsed.runtime),
        record.get("init"),
        {name: record[name] for name in ("early_stop", "keep", "validations") if name in record}
        | {"trust_code": trust_code},
    )


def _record(directory: Path) -> dict[str, Any]:
    from polymodal.training.run import read_record

    return read_record(directory)


def _kept(kind: Any, values: dict[str, Any], directory: Path) -> Any:
    """Return the recorded runtime configuration. Raises UserError for values of another type."""
    from polymodal.training.recipe_record import dataclass_from

    return dataclass_from(kind, values, directory, "runtime")


def _train(
    recipe: Any,
    corpus: Corpus,
    budget: Budget,
    seed: int,
    out: str,
    name: str,
    runtime: RuntimeConfig,
    init: str | None,
    further: dict[str, Any],
    choice: SizeChoice | None = None,
) -> None:
    from polymodal.evaluation import validation
    from polymodal.training import train as run_training
    from polymodal.training.parallel import is_first
    from polymodal.training.size_line import progress_and_size

    finished_before = _is_finished(Path(out))
    try:
        with progress_and_size(f"{name} on {corpus.name}", choice, corpus, budget) as callbacks:
            run = run_training(
                recipe,
                corpus,
                budget,
                seed=seed,
                out=out,
                name=name,
                init=init,
                validate=validation(corpus),
                runtime=runtime,
                **callbacks,
                **further,
            )
    except KeyboardInterrupt:  # the second one
        raise KeyboardInterrupt(
            f"stopped at once; go on from the last checkpoint with: polymodal resume {out}"
        ) from None
    if not is_first():
        return
    record = run.record
    did = f"{out} was finished before, and nothing was trained: " if finished_before else "Trained "
    terminal().print(
        f"{did}{record['steps']:,} steps, {record['examples']:,} examples in {record['seconds']:.0f} s"
        f"{'' if finished_before else f': {out}'}.{_said_of_best(record)}{_said_of_skipped(record, out)}"
        f"{_said_of_changed_data(run, corpus, out) if finished_before else ''}"
        f"{_said_of_features(record.get('features', {}))}"
        f"\n{next_steps(['evaluate RUN', *hints(run, corpus)], out)}",
        highlight=False,
    )


def _is_finished(directory: Path) -> bool:
    from polymodal.training.run import RECORD, WEIGHTS

    return (directory / WEIGHTS).is_file() and (directory / RECORD).is_file()


def _said_of_best(record: dict[str, Any]) -> str:
    """Say where training stopped early, and which weights the run holds."""
    kept = record.get("kept")
    stopped = f" Stopped early at step {record['stopped_early']:,}." if "stopped_early" in record else ""
    if kept and record.get("keep") == "best":
        stopped += f" The weights of step {kept['step']:,}, the best on validation ({kept['metric']}), are kept."
    return stopped


def _said_of_skipped(record: dict[str, Any], out: str) -> str:
    return f" {record['skipped']} examples were skipped; see {out}/skipped.jsonl." if record["skipped"] else ""


def _said_of_changed_data(run: Any, corpus: Corpus, out: str) -> str:
    """Say of a run that was finished before that its data is not what it was."""
    from polymodal.training.data_fingerprint import data_fingerprint

    kept = run.record.get("data_fingerprint", "")
    if not kept or kept == data_fingerprint(corpus):
        return ""
    return f"\nThe data changed since {out} was trained; choose another --out, or remove it, to train on what is there."


def _said_of_features(features: dict[str, dict[str, int]]) -> str:
    """Describe cached features: '12,000 features of the frozen text encoder cached, 94 MB' and so on."""
    return "".join(
        f"\n{of['features']:,} features of the frozen {name.replace('_', ' ')} cached, {megabytes(of['bytes'])}; "
        f"{of['looked_up'] / max(of['looked_up'] + of['computed'], 1):.0%} of its inputs were looked up."
        for name, of in features.items()
    )


def runs(arguments: Arguments) -> None:
    """list the runs below a folder, with state, cost and best metrics; `runs show RUN` plots one"""
    words = leading_words(arguments)
    if words and words[0] != "show":
        raise unknown("action of runs", words[0], ("show",))
    if words:
        _show_run(arguments[1:])
        return

    @dataclass(frozen=True)
    class Options(JsonOptions):
        root: str = "."
        """Folder to search for runs."""

    options = parse(Options, arguments, "runs", runs)
    from polymodal.training.run_index import find_runs

    run_rows = find_runs(Path(options.root))
    if options.json:
        print_json(run_rows)
    elif not run_rows:
        terminal().print("No runs here yet; start one with: polymodal train clip --corpus emoji")
    else:
        headings = ["run", "recipe", "corpus", "budget", "seed", "state", "steps", "seconds"]
        rows = [[str(run[heading]) for heading in headings] + [_best(run["best"], run["metrics"])] for run in run_rows]
        print_table([*headings, "best on validation"], rows)


def _best(values: dict[str, float], kinds: dict[str, dict[str, Any]]) -> str:
    """Return the headline metric of the run's task, else the first."""
    from polymodal.evaluation.units import number

    placed = {name: kind["headline"] for name, kind in kinds.items() if kind["headline"] is not None and name in values}
    name = min(placed, key=placed.__getitem__, default=next(iter(values), None))
    if name is None:
        return "-"
    return f"{name.rpartition('/')[2]} {number(kinds.get(name, {}).get('unit', 'percent'), values[name])}"


def _show_run(arguments: Arguments) -> None:
    path, rest = positional(arguments, "runs show RUN [--json]")

    @dataclass(frozen=True)
    class Options:
        json: bool = False
        """Print the record and the history as JSON for scripts."""

    options = parse(Options, rest, "runs show RUN", runs)
    from polymodal.training.run import read_record
    from polymodal.training.run_index import best_metrics, curves, data_name, plot, read_history, state_of

    directory = Path(path)
    record, history = read_record(directory), read_history(directory)
    if options.json:
        print_json(record | {"state": state_of(record), "best": best_metrics(history, record), "history": history})
        return
    last = history[-1] if history else {}
    facts = {
        "recipe": record["recipe"]["name"],
        "data": data_name(record),
        "budget": record["budget"],
        "seed": record["seed"],
        "state": state_of(record) + (f" by {by}" if (by := record.get("stopped_by")) else ""),
        "steps": f"{record.get('steps', last.get('step', 0)):,}",
        "examples": f"{record.get('examples', last.get('examples', 0)):,}",
        "seconds": f"{record.get('seconds', last.get('seconds', 0.0)):.0f}",
        "parameters": f"{record.get('parameters', 0):,}",
        "skipped": f"{record.get('skipped', 0)} examples, {record.get('skipped_steps', 0)} steps",
        "command": record["command"],
    }
    print_table(["", ""], [[name, str(value)] for name, value in facts.items()])
    width = min(shutil.get_terminal_size().columns, 100)
    for title, lines in curves(history, record).items():
        print("\n" + plot(title, lines, width))
    if not history:
        print("No curves yet; they are written with every checkpoint.")
    if state_of(record) in ("interrupted", "killed"):
        print(f"\nGo on with: polymodal resume {directory}")
