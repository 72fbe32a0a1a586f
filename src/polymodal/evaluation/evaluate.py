"""Evaluate a method by every task that the corpus has columns for and the method is capable of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.evaluation import tasks
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.evaluation.trained_rows import warn_of_trained_rows
from polymodal.files import written_aside
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


class Scored(NamedTuple):
    """A score with what it depends on besides the method and the data, such as prompt templates."""

    score: Score
    protocol: Mapping[str, Any]


def evaluate(run: Run, corpus: Corpus, reader: Reader | None = None, templates: Sequence[str] = ()) -> list[Score]:
    """Compute all scores that this method can have on the test splits of this corpus.

    reader: one that has read the corpus already, to save decoding again. templates: prompts with {} for the name of a
    class, for zero-shot classification; by default the corpus's own, or CLIP's 80.
    """
    return [scored.score for scored in evaluate_with_protocols(run, corpus, reader, templates)]


def evaluate_with_protocols(
    run: Run, corpus: Corpus, reader: Reader | None = None, templates: Sequence[str] = ()
) -> list[Scored]:
    """Compute the scores as `evaluate` does, each with its protocol."""
    warn_of_trained_rows(run, corpus)
    inputs = inputs_of(run, corpus, reader, templates)
    with cached_features(run):
        return [scored for task in applicable_tasks(inputs) for scored in scored_by(task, inputs)]


def inputs_of(run: Run, corpus: Corpus, reader: Reader | None = None, templates: Sequence[str] = ()) -> TaskInputs:
    """What tasks get of a run and a corpus, which may lack texts and annotations that the run was trained on."""
    reader = reader or Reader(corpus, run.processor.for_evaluation_on(corpus))
    return TaskInputs(run.model, run.processor, reader, run.recipe, tuple(templates))


def scored_by(task: Task, inputs: TaskInputs) -> list[Scored]:
    """The scores of a task, with its protocol."""
    protocol = task.protocol(inputs)
    return [Scored(score, protocol) for score in task.described(task.score(inputs))]


def cached_features(run: Run) -> AbstractContextManager[Any]:
    """Inside the block, features of frozen encoders are kept if the run kept them in training."""
    keep = run.record["runtime"]["cache_features"]
    return with_features(run.model, run.recipe.freeze) if keep else nullcontext()


def write_plots(run: Run, corpus: Corpus, folder: Path) -> list[Path]:
    """Write `NAME.png` for every applicable task that has a plot: a few test examples with the method's answers.

    Raises UserError when the folder cannot be written.
    """
    inputs = inputs_of(run, corpus)
    names = {id(task): name for name, task in tasks.entries().items()}
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task in applicable_tasks(inputs):
            if task.plot is not None and inputs.test_splits:
                path = folder / f"{names[id(task)]}.png"
                with written_aside(path) as aside:
                    task.plot(inputs).save(aside)
                written.append(path)
    except OSError as error:
        raise UserError(f"Plots cannot be written to {folder}: {error.strerror or error}.") from error
    return written


def validation(corpus: Corpus) -> Any:
    """What `train` calls now and then: a few scores of the validation split; None without one.

    They are those of the task that the method names (`validation_task`), else of the first applicable one that has a
    validation form. Of a large split, the same `MAX_VALIDATION_EXAMPLES` examples are used each time.
    """
    if not len(corpus.splits.get("validation", ())):
        return None
    corpus = corpus.with_splits({**corpus.splits, "validation": corpus.sample("validation", MAX_VALIDATION_EXAMPLES)})
    readers: dict[int, Reader] = {}

    def metrics(method: nn.Module, processor: Processor) -> Mapping[str, Score]:
        reader = readers.setdefault(id(processor), Reader(corpus, processor))
        inputs = TaskInputs(method, processor, reader)
        named = tasks.entries().get(getattr(method, "validation_task", ""))
        for task in sorted(applicable_tasks(inputs), key=lambda task: task is not named):
            if task.validate is not None and (scores := task.validate(inputs)):
                return {score.name: score for score in task.described(scores)}
        return {}

    return metrics
