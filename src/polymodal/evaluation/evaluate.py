"""Evaluate a method by every task that the corpus has columns for and the method is capable of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.evaluation import tasks
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.training.feature_cache import with_features
from polymodal.training.parallel import register_forward_methods
from polymodal.training.run import Run

MAX_VALIDATION_EXAMPLES = 2000  # of a large split, which is evaluated eight times a run


def applicable_tasks(inputs: TaskInputs) -> Iterator[Task]:
    """The tasks that can be scored, in their order; what they call of the method is made ready for FSDP."""
    for task in tasks.entries().values():
        if task.applies_to(inputs):
            register_forward_methods(inputs.method, task.forward_methods)
            yield task


def evaluate(run: Run, corpus: Corpus, reader: Reader | None = None) -> list[Score]:
    """Compute all scores that this method can have on the test splits of this corpus.

    reader: one that has read the corpus already, to save decoding again.
    """
    inputs = TaskInputs(run.model, run.processor, reader or Reader(corpus, run.processor), run.recipe)
    keep = run.record["runtime"]["cache_features"]
    with with_features(run.model, run.recipe.freeze) if keep else nullcontext():
        return [score for task in applicable_tasks(inputs) for score in task.described(task.score(inputs))]


def write_plots(run: Run, corpus: Corpus, folder: Path) -> list[Path]:
    """Write `NAME.png` for every applicable task that has a plot: a few test examples with the method's answers.

    Raises UserError when the folder cannot be written.
    """
    inputs = TaskInputs(run.model, run.processor, Reader(corpus, run.processor), run.recipe)
    names = {id(task): name for name, task in tasks.entries().items()}
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task in applicable_tasks(inputs):
            if task.plot is not None and inputs.test_splits:
                path = folder / f"{names[id(task)]}.png"
                task.plot(inputs).save(path)
                written.append(path)
    except OSError as error:
        raise UserError(f"Plots cannot be written to {folder}: {error.strerror or error}.") from error
    return written


def validation(corpus: Corpus) -> Any:
    """What `train` calls now and then: a few scores of the validation split; None without one.

    They are those of the first applicable task that has a validation form. Of a large split, the same
    `MAX_VALIDATION_EXAMPLES` examples are used each time.
    """
    if not len(corpus.splits.get("validation", ())):
        return None
    corpus = corpus.with_splits({**corpus.splits, "validation": corpus.sample("validation", MAX_VALIDATION_EXAMPLES)})
    readers: dict[int, Reader] = {}

    def metrics(method: nn.Module, processor: Processor) -> Mapping[str, Score]:
        reader = readers.setdefault(id(processor), Reader(corpus, processor))
        inputs = TaskInputs(method, processor, reader)
        for task in applicable_tasks(inputs):
            if task.validate is not None:
                return {score.name: score for score in task.described(task.validate(inputs))}
        return {}

    return metrics
