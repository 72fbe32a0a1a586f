"""The command that scores a run: on its corpus, on other data, or by the protocol of a benchmark."""

# Annotations of options that are defined inside a function are read at run time, so they are not postponed here.

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polymodal import source
from polymodal.cli._flags import Arguments, JsonOptions, RunOptions, parse, positional, run_and_corpus
from polymodal.cli._printing import print_json, print_table, say_which_weights, terminal, waiting
from polymodal.errors import UserError, unknown

if TYPE_CHECKING:
    from polymodal.evaluation import Scored

BENCHMARKS = Path(source.__file__).parent / "evaluation" / "benchmarks"  # importing it would import torch
USAGE = "evaluate RUN [--corpus NAME | --data PATH] [--benchmark NAME] [--plot FOLDER] [--json] [--out FILE]"


def evaluate(arguments: Arguments) -> None:
    """evaluate a run on the test splits of its corpus or of other data, or by the protocol of a benchmark"""
    path, rest = positional(arguments, USAGE)
    import tyro

    @dataclass(frozen=True)
    class Options(RunOptions, JsonOptions):
        benchmark: str | None = None
        """Benchmark whose protocol to follow on its published files, given with --data: chartqa, coco-captions,
        coco-retrieval, docvqa, flickr30k, imagenet-zeroshot, librispeech, refcoco or vqav2."""
        split: str | None = None
        """Split that the benchmark scores; by default every example, or the published splits that the files name."""
        template: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
        """Prompt template for zero-shot classification, such as "a photo of a {}."; repeat it for several."""
        templates: str | None = None
        """Text file with a prompt template a line."""
        plot: str | None = None
        """Folder for an image per task, with test examples and the answers of the method."""
        out: str | None = None
        """JSON file for the scores with their intervals, chance and protocol."""

    options = parse(Options, rest, "evaluate RUN", evaluate)
    _check(options)
    templates = source.find("polymodal.evaluation.prompt_templates", "checked_templates")(
        options.template, options.templates
    )
    from polymodal.evaluation import evaluate_with_protocols, score_on_benchmark, write_plots
    from polymodal.evaluation.kept_scores import keep_scores

    run, corpus = run_and_corpus(path, options)
    say_which_weights(run)
    with waiting(f"Scoring {path} on {options.benchmark or corpus.name}"):
        if options.benchmark is None:
            scores = evaluate_with_protocols(run, corpus, templates=templates)
        else:
            scores = score_on_benchmark(options.benchmark, run, corpus, options.split, templates)
    if not scores:
        raise UserError(f"The run {path} has no capability that can be tested on '{corpus.name}'.{corpus.hint}")
    if options.benchmark is None and not options.given and not templates:
        keep_scores(Path(path), [scored.score for scored in scores])
    plots = [] if options.plot is None else write_plots(run, corpus, Path(options.plot))
    records = [_record(scored) for scored in scores]
    if options.out is not None:
        _write(records, Path(options.out))
    if options.json:
        print_json(records)
        return
    _print(scores)
    for written in [*plots, *([options.out] if options.out else [])]:
        terminal().print(f"Wrote {written}.", highlight=False)


def _check(options: Any) -> None:
    """Raise UserError for an unknown benchmark, and for options that contradict each other."""
    benchmarks = {file.stem.replace("_", "-") for file in BENCHMARKS.glob("[!_]*.py")}
    if options.benchmark is not None and options.benchmark not in benchmarks:
        raise unknown("benchmark", options.benchmark, benchmarks)
    if options.benchmark is None:
        if options.split is not None:
            raise UserError("--split is of a benchmark: name one with --benchmark.")
        return
    if not options.given:
        raise UserError(f"Give the files of {options.benchmark}: --benchmark {options.benchmark} --data PATH.")
    if options.plot is not None:
        raise UserError("--plot is of the tasks of a corpus: leave out --benchmark.")


def _record(scored: "Scored") -> dict[str, Any]:
    score = scored.score
    measured = score.estimate()._asdict()
    about = {"unit": score.unit, "interval": "95 % percentile bootstrap over test units", "protocol": scored.protocol}
    return {"name": score.name, "chance": score.chance, "test_units": len(score.clusters)} | measured | about


def _write(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another --out.") from error


def _print(scores: "Sequence[Scored]") -> None:
    """Print the table of scores, and the protocols behind them."""
    print_table(
        ["score", "value", "95 % interval", "chance"],
        [[scored.score.name, *scored.score.shown()] for scored in scores],
        right=(1, 2, 3),
    )
    protocols = {json.dumps(scored.protocol): scored.protocol for scored in scores if scored.protocol}
    for protocol in protocols.values():
        entries = [f"{name.replace('_', ' ')}: {_in_words(value)}" for name, value in protocol.items()]
        text = "\n  ".join(["Protocol:", *entries]) if "benchmark" in protocol else f"Protocol: {'; '.join(entries)}."
        terminal().print(text, highlight=False, markup=False)


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
