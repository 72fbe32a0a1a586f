"""The entry point of training, and everything around the steps."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polymodal.constraints import validate_constraints
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.stream import MissingData
from polymodal.data.loader import killed_workers
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError, write_errors
from polymodal.modalities.text import Tokenizer
from polymodal.training.best import BestWeights, best_weights, remove_best
from polymodal.training.checkpoint import remove_checkpoints
from polymodal.training.checkpoint_reading import checkpoints
from polymodal.training.configuration import holds_finished, new_record
from polymodal.training.data_fingerprint import data_fingerprint
from polymodal.training.ending import Interrupted, Paused, finish, interrupt, pause, rescue
from polymodal.training.folder_lock import lock_folder
from polymodal.training.initialization import (
    copy_matching_weights,
    from_init,
    load_pretrained,
    missing_weights,
    recipe_started_from,
    tokenizer_of,
    with_tokenizer,
)
from polymodal.training.loop import Trainer
from polymodal.training.parallel import World, check_batch, join_world
from polymodal.training.progress import Progress
from polymodal.training.recipe_file import save_user_recipe
from polymodal.training.run import RECORD, Run, load_run, read_record, write_json
from polymodal.training.run_files import save_processor
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.stages import active_stages
from polymodal.training.stopping import StopEvent, stop_signals
from polymodal.training.validation import VALIDATIONS, Validate
from polymodal.types import Budget

__all__ = ["Interrupted", "OnStep", "Paused", "Progress", "Validate", "copy_matching_weights", "train"]

LOG_EVERY = 10  # steps between two entries of the history

OnBuild = Callable[[Run], object]
OnStep = Callable[[Progress, float, Mapping[str, Tensor]], None]  # progress, budget fraction, losses of the step


def train(
    recipe: Any,
    corpus: Corpus,
    budget: Budget,
    *,
    seed: int = 0,
    out: Path | str | None = None,
    name: str | None = None,
    weights_like: nn.Module | None = None,
    tokenizer: Tokenizer | None = None,
    init: Path | str | None = None,
    validate: Validate | None = None,
    validations: int = VALIDATIONS,
    early_stop: int = 0,
    keep: str | None = None,
    runtime: RuntimeConfig | None = None,
    on_build: OnBuild | None = None,
    on_step: OnStep | None = None,
    until_step: int | None = None,
    trust_code: bool = False,
) -> Run:
    """Train a recipe, which derives from `training.recipe.TrainingRecipe`, on a corpus and return the run.

    seed: of weights, order of examples and all sampling; with a budget in steps or examples it fixes the weights.
    out: folder of the run. An unfinished run with the same configuration is resumed; a finished one is returned.
    weights_like: module from which parameters with matching name and shape are copied (paired runs).
    tokenizer: used instead of training one on the corpus; that of `weights_like`, with its embeddings.
    init: finished run whose matching weights and tokenizer are used, and to whose architecture a recipe with
    `starting_from` adapts; a warning and `not_initialized` in the record name the parameters that it lacks. Or
    `hf:NAME`, a pretrained model that the recipe was built for (`training.initialization.with_pretrained`).
    validate: called `validations` times, evenly over the budget; its time does not count. early_stop: validations
    in a row without a better headline metric that end training; 0: none. keep: best or last weights.
    runtime: device, processes, precision, memory and checkpoints; changes results by rounding at most. on_build: called
    with the run before its first step. on_step: called after every step. until_step: there it validates, saves and
    raises `Paused`; learning rates are those of the whole budget. trust_code: see `load_run`.
    Raises UserError for a hyper-parameter outside its range, a folder that holds another run, a corpus that the recipe
    cannot use, a disk that cannot be written, or non-finite losses; Interrupted after Ctrl-C, SIGTERM or SIGHUP.
    """
    recipe = _checked(recipe if weights_like is not None else recipe_started_from(recipe, init, trust_code))
    runtime = runtime or RuntimeConfig()
    directory, record = Path(out) if out is not None else None, new_record(recipe, name, corpus, budget, seed, init)
    best = best_weights(early_stop, keep, validate, validations, record)
    with join_world(runtime.device) as world, stop_signals() as stop:
        check_batch(recipe.batch_size, runtime.micro_batch, world.size)
        finished = directory if directory is not None and holds_finished(directory, record) else None
        world.all_reduce_max(0)  # no process writes before all have looked
        if finished is not None:
            return _finished_run(finished, world, trust_code)
        written = directory if world.first else None
        begin: dict[str, Any] = {"tokenizer": tokenizer, "weights_like": weights_like, "init": init}
        with _locked(directory, world):
            with _given_up_on_error(written):
                _announce(record, _same_data(directory, corpus), runtime, validations, written)
                run = build_run(recipe, corpus, record, seed, **begin, directory=directory, trust_code=trust_code)
                _begin(run, written, on_build if world.first else None)
                trainer = Trainer(run, corpus, budget, seed, runtime, world)
            try:
                return _train(trainer, stop, validate, validations, on_step, best, until_step)
            finally:
                trainer.active.data.close()


def _finished_run(directory: Path, world: World, trust_code: bool) -> Run:
    """Return the run, and remove what a process left that was killed after it had finished it."""
    if world.first:
        # UserError: another process holds it, or it is read-only.
        with suppress(UserError, OSError), lock_folder(directory, "trained into", "wait"):
            remove_checkpoints(directory)
            remove_best(directory)
    return load_run(directory, trust_code)


def _checked(recipe: Any) -> Any:
    """Return the recipe. Raises UserError for one that cannot be trained, before anything is written."""
    validate_constraints(recipe)
    active_stages(recipe)
    return recipe


@contextmanager
def _locked(directory: Path | None, world: World) -> Iterator[None]:
    """Lock the folder of the run, in the first process. Raises UserError in all when another training holds it."""
    refused = ""
    with ExitStack() as stack:
        if directory is not None and world.first:
            try:
                advice = "wait until it has stopped, or choose another --out"
                stack.enter_context(lock_folder(directory, "trained into", advice))
            except UserError as error:
                refused = str(error)
        if refused := "".join(world.all_gather_object(refused)):
            raise UserError(refused)
        yield


def _announce(
    record: dict[str, Any], fingerprint: str, runtime: RuntimeConfig, validations: int, directory: Path | None
) -> None:
    """Add to the record how, where and on what the run is executed; write it to its folder, in the first process."""
    record |= {
        "data_fingerprint": fingerprint,
        "state": "running",
        "command": command_line(),
        "validations": validations,
        "runtime": dataclasses.asdict(runtime),
    }
    record["process"] = {"host": socket.gethostname(), "pid": os.getpid()}
    if directory is not None:
        with write_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            write_json(directory / RECORD, record)


def _begin(run: Run, directory: Path | None, on_build: OnBuild | None) -> None:
    """Call `on_build`; save what does not change in training: a user's recipe file, the processor, and the record."""
    if on_build is not None:
        on_build(run)
    if directory is None:
        return
    with write_errors(directory):
        save_user_recipe(run.recipe, directory)
        run.record["checksums"] = save_processor(run.processor, directory)
        run.save_record()


def build_run(
    recipe: Any,
    corpus: Corpus,
    record: dict[str, Any],
    seed: int,
    *,
    tokenizer: Tokenizer | None = None,
    weights_like: nn.Module | None = None,
    init: Path | str | None = None,
    directory: Path | None = None,
    trust_code: bool = False,
) -> Run:
    """Fit the processor and build the method with its first weights; the arguments are those of `train`."""
    if init is None and weights_like is None and (reason := recipe.missing_init()):
        raise UserError(reason)
    torch.manual_seed(seed)
    processor = fit_processor(recipe, corpus)
    if init is not None and tokenizer is None:
        tokenizer = tokenizer_of(init, trust_code)
    if tokenizer is not None:
        processor = with_tokenizer(recipe, processor, tokenizer)
    model = recipe.build(processor)
    load_pretrained(model)
    if weights_like is not None:
        copy_matching_weights(weights_like, model)
    if init is not None:
        from_init(init)(model)
        record["not_initialized"] = missing_weights(model, init)
    if "data_fingerprint" not in record:
        record["data_fingerprint"] = data_fingerprint(corpus)
    record["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return Run(recipe, model, processor, record, directory=directory)


def _same_data(directory: Path | None, corpus: Corpus) -> str:
    """Return the fingerprint of the data. Raises UserError when an unfinished run was begun with other data."""
    now = data_fingerprint(corpus)
    before = read_record(directory).get("data_fingerprint") if directory is not None and checkpoints(directory) else ""
    if before and before != now:
        raise UserError(
            f"The data changed since {directory} was begun, so it cannot go on with the same examples; restore the "
            "data, or choose another --out."
        )
    return now


@contextmanager
def _given_up_on_error(directory: Path | None) -> Iterator[None]:
    """Remove the new folder of a run whose set-up failed, so that the corrected command may use it."""
    new = directory is not None and not directory.exists()
    try:
        yield
    except UserError:
        if directory is not None and new:
            shutil.rmtree(directory, ignore_errors=True)
        raise


@killed_workers()
def _train(
    trainer: Trainer,
    stop: StopEvent,
    validate: Validate | None,
    validations: int,
    on_step: OnStep | None,
    best: BestWeights | None,
    until_step: int | None,
) -> Run:
    """Run steps until the budget is used, with logging, validation and checkpoints between them."""
    stopped_early = False
    while (before := trainer.fraction) < 1:
        if until_step is not None and trainer.progress.step >= until_step:
            raise pause(trainer, validate)
        try:
            losses = trainer.step(stop.is_set())
        except MissingData as error:
            raise rescue(trainer, error) from error
        reached = trainer.fraction
        if trainer.progress.step % LOG_EVERY == 0 or reached >= 1:
            trainer.log_losses()
        if validate is not None and int(reached * validations) > int(before * validations):
            metrics = trainer.validate(validate)
            stopped_early = best is not None and best.stops(trainer, metrics)
        if on_step is not None and trainer.world.first:
            on_step(trainer.progress, reached, losses)
        if reached >= 1 or stopped_early:
            break
        if trainer.stopping or (stop.is_set() and trainer.world.size == 1):
            raise interrupt(trainer, stop.reason)
        if trainer.checkpoint_due:
            trainer.save()
    trainer.log_losses()
    return finish(trainer, best)


def command_line() -> str:
    """Return the command that the user gave, for records and reports."""
    name = Path(sys.argv[0]).name
    return shlex.join(["polymodal" if name == "__main__.py" else name, *sys.argv[1:]])
