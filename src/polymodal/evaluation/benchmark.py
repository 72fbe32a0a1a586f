"""A benchmark: the published protocol by which a run is scored on the published files."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError, unknown
from polymodal.evaluation import benchmarks
from polymodal.evaluation.evaluate import Scored, cached_features, inputs_of, scored_by
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.evaluation.trained_rows import warn_of_trained_rows
from polymodal.training.parallel import register_forward_methods
from polymodal.training.run import Run

ALL = "all"
MADE = {"train", "validation", "test"}  # the splits of files that name none
BY_CONTENT = "a hash of"  # how the rule of such splits begins


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, found as the value `benchmark` of a file of `evaluation/benchmarks`.

    source: where the protocol was published. data: what `--data` is, in a few words; its format is found by looking at
    the files. splits: the published splits that are scored where the files name them, else their `test`, or
    `validation`; all examples are where they name none, as the splits are then made and mean nothing. task: its scores,
    protocol and requirements.
    """

    title: str
    source: str
    data: str
    task: Task
    splits: tuple[str, ...] = ()

    def on(self, corpus: Corpus, split: str | None = None) -> Corpus:
        """Return the corpus with what is scored as its only splits, `test` or `test_NAME`.

        split: the name of one, or "all" for every example. Raises UserError for a name that the corpus does not have.
        """
        names = self._stated(corpus)
        if split == ALL or (split is None and not names):
            return corpus.with_splits({"test": np.arange(len(corpus))})
        if split is not None or len(names) == 1:
            return corpus.with_splits({"test": corpus.rows(split or names[0])})
        return corpus.with_splits({f"test_{name}": corpus.rows(name) for name in names})

    def _stated(self, corpus: Corpus) -> list[str]:
        """Return the published splits that the files name; none where all splits are made."""
        by_files = corpus.split_rule != "" and not corpus.split_rule.startswith(BY_CONTENT)
        if not by_files and not set(corpus.splits) - MADE:
            return []
        present = {split.lower(): split for split, rows in corpus.splits.items() if len(rows)}
        names = [present[name.lower()] for name in self.splits if name.lower() in present]
        usual = [name for name in ("test", "validation") if by_files and len(corpus.splits.get(name, ()))]
        return names or usual[:1]


def score_on_benchmark(
    name: str, run: Run, corpus: Corpus, split: str | None = None, templates: Sequence[str] = ()
) -> list[Scored]:
    """Score a run by the protocol of a benchmark.

    name: of a file of `evaluation/benchmarks`, with - for _. split, templates: as of `Benchmark.on` and `evaluate`.
    Raises UserError where the method cannot do what the benchmark measures, or the data lacks a column.
    """
    benchmark = find_benchmark(name)
    corpus = benchmark.on(corpus, split)
    warn_of_trained_rows(run, corpus)
    inputs = inputs_of(run, corpus, templates=templates)
    _check(name, benchmark, run, inputs)
    register_forward_methods(run.model, benchmark.task.forward_methods)
    with cached_features(run):
        scores = scored_by(benchmark.task, inputs)
    about = {"benchmark": benchmark.title, "source": benchmark.source, "examples": _examples(corpus)}
    about |= {"unreadable": len(inputs.reader.skipped)} if inputs.reader.skipped else {}
    in_order = sorted(scores, key=lambda one: one.score.headline if one.score.headline is not None else np.inf)
    return [replace_protocol(one, about) for one in in_order]


def replace_protocol(scored: Scored, about: dict[str, Any]) -> Scored:
    """Return the score with these entries before those of its protocol."""
    return Scored(scored.score, about | dict(scored.protocol))


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark of this name. Raises UserError with the nearest one for an unknown name."""
    entries = benchmarks.entries()
    if name not in entries:
        raise unknown("benchmark", name, entries)
    return entries[name]


def _examples(corpus: Corpus) -> Any:
    counts = {split: len(rows) for split, rows in corpus.splits.items()}
    return counts if len(counts) > 1 else next(iter(counts.values()))


def _check(name: str, benchmark: Benchmark, run: Run, inputs: TaskInputs) -> None:
    task = benchmark.task
    if not isinstance(run.model, task.capability):
        protocols = getattr(task.capability, "__args__", (task.capability,))
        methods = " or ".join(
            "`"
            + "` and `".join(one for one, _ in inspect.getmembers(protocol, inspect.isfunction) if one[0] != "_")
            + "`"
            for protocol in protocols
        )
        raise UserError(f"The run {run.name} cannot be scored on {name}: its method has no {methods}.")
    if not task.applies_to(inputs):
        kinds = " or ".join(" and ".join(kind.__name__.lower() for kind in each) for each in task.requires)
        has = ", ".join(f"{column} ({type(kind).__name__.lower()})" for column, kind in inputs.corpus.columns.items())
        raise UserError(
            f"{inputs.corpus.name} cannot be scored on {name}, which needs {benchmark.data} with columns of {kinds} "
            f"that the run takes; it has {has}."
        )
