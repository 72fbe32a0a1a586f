"""The loop: batches in, named losses out, one step after the other until the budget is used."""

from __future__ import annotations

import copy
import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader, training_batches
from polymodal.errors import UserError
from polymodal.training.checkpoint import checkpoints, load_checkpoint, remove_checkpoints, save_checkpoint
from polymodal.training.optimiser import adamw, learning_rate
from polymodal.training.recipe_record import keep_own_recipe, recipe_record
from polymodal.training.run import SKIPPED, WEIGHTS, Run, evaluating, load_run, read_record, to_device, write_text
from polymodal.types import Batch, Budget

LOG_EVERY = 10  # steps between two entries of the history


class Interrupted(UserError):
    """Ctrl-C or SIGTERM; what was trained is saved."""


@dataclass
class Progress:
    """Where a run stands; all of it goes into its checkpoints. seconds: of training, without validation."""

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def fraction(self, budget: Budget) -> float:
        return budget.fraction(steps=self.step, examples=self.examples, seconds=self.seconds)

    def log(self, **figures: Any) -> None:
        where = {"step": self.step, "examples": self.examples, "seconds": round(self.seconds, 3)}
        self.history.append(where | figures)


OnStep = Callable[[Progress, float, Mapping[str, Tensor]], None]  # progress, share of the budget, this step's losses
Validate = Callable[[nn.Module, Any], Mapping[str, float]]  # method, processor -> figures by name


def train(
    recipe: Any,
    corpus: Corpus,
    budget: Budget,
    *,
    seed: int = 0,
    out: Path | str | None = None,
    name: str | None = None,
    weights_like: nn.Module | None = None,
    validate: Validate | None = None,
    validations: int = 8,
    checkpoint_every: float = 60.0,
    on_step: OnStep | None = None,
    device: str | None = None,
) -> Run:
    """Train a recipe on a corpus and return the run.

    recipe: a `polymodal.types.Recipe` with the fields of `Optimisation`.
    seed: of the weights, the order of the examples and every random choice; the same seed and a budget in steps or
    examples give the same weights.
    out: the run's folder. When it holds the same run, unfinished, that one goes on; when finished, it is returned.
    weights_like: a freshly built module whose parameters are taken over wherever name and shape agree (paired runs).
    validate: called `validations` times, evenly over the budget; its time does not count.
    checkpoint_every: seconds between two checkpoints.
    device: where to compute; by default a GPU when there is one.

    Raises UserError for a folder that holds another run, a corpus that the recipe cannot use, or a loss that is not
    finite; Interrupted after Ctrl-C or SIGTERM.
    """
    directory = Path(out) if out is not None else None
    record: dict[str, Any] = {
        "recipe": recipe_record(recipe, name),
        "corpus": dict(corpus.choices),
        "budget": str(budget),
        "seed": seed,
    }
    if directory is not None and _holds_finished(directory, record):
        return load_run(directory)
    torch.manual_seed(seed)
    processor = recipe.processor(corpus)
    model = recipe.build(processor)
    if weights_like is not None:
        share_weights(weights_like, model)
    record |= {"state": "running", "command": command_line(), "parameters": sum(p.numel() for p in model.parameters())}
    run = Run(recipe, model, processor, record, directory=directory)
    loop = _Loop(run, corpus, seed, device)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        keep_own_recipe(recipe, directory)
        processor.save(directory)
        loop.restore()
        run.save_record()
    run.history = loop.progress.history
    saved_at = time.monotonic()
    with stop_signals() as stop:
        while (before := loop.progress.fraction(budget)) < 1:
            losses = loop.step(before)
            reached = loop.progress.fraction(budget)
            if loop.progress.step % LOG_EVERY == 0 or reached >= 1:
                loop.log_losses()
            if validate is not None and int(reached * validations) > int(before * validations):
                with evaluating(loop.result) as method:
                    loop.progress.log(validation=dict(validate(method, processor)))
            if on_step is not None:
                on_step(loop.progress, reached, losses)
            if stop.is_set() and reached < 1:
                raise loop.interrupt()
            if time.monotonic() - saved_at > checkpoint_every:
                loop.save()
                saved_at = time.monotonic()
    return loop.finish()


class _Loop:
    """One run in the making: everything that changes from step to step."""

    def __init__(self, run: Run, corpus: Corpus, seed: int, device: str | None):
        recipe = run.recipe
        self.run = run
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = run.model.to(self.device).train()
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
            if recipe.ema
            else None
        )
        self.optimiser = adamw(self.model, recipe)
        self.rows = corpus.rows("train")
        self.reader = Reader(corpus, run.processor)
        ahead = 0 if self.device.type == "cpu" else 4  # a thread that decodes would take the cores from the step
        self.batches = training_batches(self.reader, self.rows, recipe.batch_size, seed, recipe.training_batch, ahead)
        self.progress = Progress()
        self.unlogged: list[dict[str, Tensor]] = []

    @property
    def result(self) -> nn.Module:
        """The module whose weights the run is about: the moving average, if there is one."""
        return self.average.module if self.average is not None else self.model

    def step(self, fraction: float) -> dict[str, Tensor]:
        """Take one batch and one step of the optimiser; returns the losses."""
        recipe, record, progress = self.run.recipe, self.run.record, self.progress
        started = time.perf_counter()
        batch = to_device(next(self.batches), self.device)
        self.reader.check(len(self.rows))
        if "flops_an_example" not in record:
            record["flops_an_example"] = flops(self.model, batch) / recipe.batch_size
            started = time.perf_counter()
        rate = learning_rate(recipe, fraction)
        losses = optimise(self.model, batch, self.optimiser, rate, recipe.clip_norm)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.unlogged.append(losses)
        progress.step += 1
        progress.examples += recipe.batch_size
        progress.seconds += time.perf_counter() - started
        return losses

    def log_losses(self) -> None:
        """Mean losses since the last entry. Raises UserError when one is not finite."""
        rate = self.optimiser.param_groups[0]["lr"]
        self.progress.log(learning_rate=rate, losses=mean_losses(self.unlogged, self.progress.step))
        self.unlogged.clear()

    def save(self) -> None:
        if self.run.directory is not None:
            if self.unlogged:
                self.log_losses()
            state = vars(self.progress) | {"batches": self.batches.get_state()}
            save_checkpoint(self.run.directory, self.model, self.average, self.optimiser, state)

    def restore(self) -> None:
        """Go on from the newest checkpoint of the run's folder, if there is one."""
        assert self.run.directory is not None
        for path in checkpoints(self.run.directory)[-1:]:
            state = load_checkpoint(path, self.model, self.average, self.optimiser)
            self.batches.set_state(state.pop("batches"))
            self.progress = Progress(**state)

    def interrupt(self) -> Interrupted:
        """Save, and say how to go on."""
        step, directory = self.progress.step, self.run.directory
        if directory is None:
            return Interrupted(f"Stopped at step {step}; nothing was saved, because no folder was given.")
        self.save()
        self.run.record["state"] = "interrupted"
        self.run.save_record()
        return Interrupted(f"Stopped and saved at step {step}; go on with: polymodal resume {directory}")

    def finish(self) -> Run:
        """Write the result, remove the checkpoints."""
        run, progress, skipped = self.run, self.progress, self.reader.skipped
        run.model = self.result.eval()
        run.record |= {
            "state": "finished",
            "steps": progress.step,
            "examples": progress.examples,
            "seconds": round(progress.seconds, 3),
            "skipped": len(skipped),
        }
        if run.directory is not None:
            lines = [json.dumps({"key": key, "reason": reason}) for key, reason in sorted(skipped.items())]
            write_text(run.directory / SKIPPED, "".join(f"{line}\n" for line in lines))
            run.save_result()
            run.save_record()
            remove_checkpoints(run.directory)
        return run


def optimise(
    model: Any, batch: Batch, optimiser: torch.optim.Optimizer, rate: float, clip_norm: float
) -> dict[str, Tensor]:
    """One step on the sum of the losses; returns them, detached."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    losses = model.losses(batch)
    optimiser.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    if clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimiser.step()
    return {name: loss.detach() for name, loss in losses.items()}


def mean_losses(steps: list[dict[str, Tensor]], step: int) -> dict[str, float]:
    """The mean of each loss over some steps. Raises UserError when one is not finite, with its name."""
    means = {name: float(torch.stack([losses[name] for losses in steps]).mean()) for name in steps[0]}
    for name, value in means.items():
        if not math.isfinite(value):
            raise UserError(
                f"The loss '{name}' is {value} at step {step}; use a smaller --learning-rate or a --clip-norm."
            )
    return means


def share_weights(source: nn.Module, target: nn.Module) -> int:
    """Copy every parameter whose name and shape agree; returns how many did."""
    given, own = dict(source.named_parameters()), dict(target.named_parameters())
    agreeing = [name for name in own if name in given and own[name].shape == given[name].shape]
    with torch.no_grad():
        for name in agreeing:
            own[name].copy_(given[name])
    return len(agreeing)


def flops(model: Any, batch: Batch) -> int:
    """Floating-point operations of one forward and backward pass; the model and the random state stay as they are."""
    state = torch.get_rng_state()
    twin = copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(twin.losses(batch).values())).sum().backward()
    torch.set_rng_state(state)
    return counter.get_total_flops()


def command_line() -> str:
    """The command that the user gave, for records and reports."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one of its kind stops at once. Only the main thread listens."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {signal.Signals(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _holds_finished(directory: Path, record: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, finished. Raises UserError when it holds another one."""
    if not directory.exists() or not any(directory.iterdir()):
        return False
    held = read_record(directory)
    same = json.loads(json.dumps(record))
    if any(held.get(key) != same[key] for key in same):
        differing = ", ".join(key for key in same if held.get(key) != same[key])
        raise UserError(f"{directory} holds a run with another {differing}; choose another --out, or remove it.")
    return held["state"] == "finished" and (directory / WEIGHTS).is_file()
