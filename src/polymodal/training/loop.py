"""One run in the making: everything that changes from step to step, and how it is saved and found again."""

from __future__ import annotations

import copy
import gc
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader, TrainingData
from polymodal.data.sequence import PackedSequences
from polymodal.draws import mix
from polymodal.errors import UserError
from polymodal.layers.lora import add_lora, merge_lora
from polymodal.layers.transformer import Transformer
from polymodal.modalities.text import Tokens
from polymodal.training.average import MovingAverage
from polymodal.training.checkpoint import (
    CheckpointWriter,
    checkpoints,
    load_checkpoint,
    load_state,
    remove_checkpoints,
    remove_unfinished,
    training_tensors,
)
from polymodal.training.execution import Execution
from polymodal.training.features import CachedEncoder, cached_encoders, frozen_names, is_frozen
from polymodal.training.gradients import backward, total
from polymodal.training.harmony import Harmony
from polymodal.training.optimiser import adamw, clip_gradients, learning_rate
from polymodal.training.processes import Processes, check_batch, reshard, spread, whole
from polymodal.training.run import SKIPPED, Run, evaluating, to_device, write_text
from polymodal.training.tracking import Tracker
from polymodal.types import Batch, Budget

KEYS_SHOWN = 5  # of a batch whose loss is not finite


class Interrupted(UserError):
    """Ctrl-C or SIGTERM; what was trained is saved."""


@dataclass
class Progress:
    """Where a run stands; all of it goes into its checkpoints.

    seconds: of training, without validation. tokens, places: real tokens, and places that they were laid out in.
    left_out: steps without an update, because a loss or gradient was not finite.
    """

    step: int = 0
    stage: int = 0
    examples: int = 0
    seconds: float = 0.0
    tokens: int = 0
    places: int = 0
    flops: float = 0.0
    left_out: int = 0
    left_out_in_a_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def fraction(self, budget: Budget) -> float:
        return budget.fraction(
            steps=self.step, examples=self.examples, seconds=self.seconds, tokens=self.tokens, flops=self.flops
        )

    @property
    def fill(self) -> float:
        """The share of places that hold a real token; 1 where there are no sequences."""
        return self.tokens / self.places if self.places else 1.0

    def log(self, **figures: Any) -> dict[str, Any]:
        where = {"step": self.step, "examples": self.examples, "seconds": round(self.seconds, 3)}
        self.history.append(where | figures)
        return self.history[-1]


class Loop:
    """Steps of one run; goes on from the newest checkpoint of its folder, if there is one."""

    def __init__(self, run: Run, corpus: Corpus, budget: Budget, seed: int, execution: Execution, place: Processes):
        self.run = run
        self.corpus = corpus
        self.budget = budget
        self.seed = seed
        self.execution = execution
        self.every = Budget.parse(execution.checkpoint_every)
        self.place = place
        self.recipe = recipe = run.recipe
        self.stages = recipe.stages()
        if not self.stages:
            raise UserError("Nothing would be trained: the shares of all stages are 0.")
        shares = [stage.share for stage in self.stages]
        self.ends = [end / sum(shares) for end in accumulate(shares)]
        self.model = run.model.to(place.device).train()
        if recipe.lora_rank:
            add_lora(self.model, recipe.lora_rank, recipe.lora_targets)
        self.learnable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.frozen = frozen_names(self.model, recipe.freeze)
        for module in self.model.modules():
            if isinstance(module, Transformer):
                module.recompute = execution.recompute
            if execution.compile and isinstance(module, nn.ModuleList):
                for entry in module:
                    entry.compile()
        self.cached: dict[str, CachedEncoder] = {}
        self.flops_an_example = 0.0
        self.losses_of: Any = None  # the method's losses, averaging gradients over processes where there are several
        self.harmony = Harmony(recipe.harmonise) if recipe.harmonise != "none" else None
        group = recipe.harmonise_group if self.harmony is not None else 0
        check_batch(recipe.batch_size, group, place.count)
        self.pieces = group or execution.micro_batch or recipe.batch_size // place.count
        self.sharded = execution.parallel == "fsdp" and place.count > 1
        if self.harmony is not None and self.sharded:
            raise UserError("--harmonise needs whole gradients of each loss; use --parallel ddp with it.")
        self.unlogged: list[dict[str, Tensor]] = []
        self.skipped_before: dict[str, str] = {}
        self.stopping = False

        held = self._newest_checkpoint()
        state = load_state(held) if held is not None else None
        if state is not None:
            taken, self.skipped_before = state.pop("taken"), state.pop("skipped")
            self.progress = Progress(**state)
        else:
            self.progress = Progress()
        run.history = self.progress.history
        self._enter(self.progress.stage, fresh=state is None)
        self.average = MovingAverage(self.model, recipe.ema) if recipe.ema else None
        if held is not None:
            load_checkpoint(held, self.model, self.average, self.optimiser, place)
            self.data.taken = taken
        self._keep_features()
        self.saved = copy.copy(self.progress)
        writes = run.directory is not None
        self.writer = CheckpointWriter(run.directory, execution.keep, place) if run.directory is not None else None
        self.tracker = Tracker(execution.track if writes and place.first else "none", run, self.progress.step)

    def _newest_checkpoint(self) -> Path | None:
        if self.run.directory is None:
            return None
        if self.place.first:
            remove_unfinished(self.run.directory)
        self.place.agree(0)  # no process looks before the first one has tidied up
        return next(reversed(checkpoints(self.run.directory)), None)

    def _enter(self, number: int, fresh: bool) -> None:
        """Begin a stage: what trains, on which data, with a new optimiser."""
        self._release_features()
        stage = self.stages[number]
        recipe, model, place, execution = self.recipe, self.model, self.place, self.execution
        if fresh and stage.start is not None:
            stage.start(model)
        for name, parameter in model.named_parameters():
            wanted = any(fnmatchcase(name, pattern) for pattern in stage.trainable)
            parameter.requires_grad_(name in self.learnable and wanted and name not in self.frozen)
        self._training_mode()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"The stage '{stage.name}' trains nothing: no parameter is called {stage.trainable}.")
        corpus = self.corpus if stage.corpus is None else stage.corpus()
        self.reader = Reader(corpus, self.run.processor)
        self.reader.skipped |= self.skipped_before
        workers = execution.workers if execution.workers is not None else 0 if place.device.type == "cpu" else 4
        self.data = TrainingData(
            self.reader,
            recipe.batch_size,
            int(mix(np.array([self.seed * len(self.stages) + number], dtype=np.uint64))[0] >> np.uint64(33)),
            stage.training_batch or recipe.training_batch,
            micro_batch=self.pieces,
            process=place.rank,
            processes=place.count,
            workers=workers,
            worker_processes=execution.worker_processes,
            bucket=recipe.bucket,
            padded=recipe.padded,
        )
        measured = self.run.record.setdefault("flops_by_stage", {})
        cut = self.sharded and self.losses_of is not None  # in an earlier stage
        all_used = True
        if not cut and (str(number) not in measured or (place.count > 1 and not self.sharded)):
            batch = to_device(self.data.batch(0)[0], place.device)
            operations, all_used = flops(model, batch, stage.loss_weights)
            measured.setdefault(str(number), operations / self.pieces)
        # What is cut over processes already cannot be measured: a stage that begins there counts as the one before.
        self.flops_an_example = measured.get(str(number), self.flops_an_example)
        # DistributedDataParallel is built for what trains now; FSDP2 looks again in every step.
        if not cut:
            one_pass = self.harmony is None and self.pieces == recipe.batch_size // place.count
            self.losses_of = spread(model, place, execution.parallel, one_pass, all_used)
            self.averages_itself = self.losses_of != model.losses
        self.optimiser = adamw(model, recipe, stage.learning_rates)

    def _keep_features(self) -> None:
        """From now on frozen towers look up what they have seen, under a key of the weights that they have now."""
        # A sharded tower gathers its weights together with the other processes, which may have nothing new to compute.
        if self.execution.cache_features and not self.sharded:
            unchanged = [name for name in self.recipe.unaugmented() if is_frozen(self.model.get_submodule(name))]
            self.cached = cached_encoders(self.model, unchanged)

    def _training_mode(self) -> None:
        """Frozen parts evaluate: no dropout disturbs what cannot learn from it."""
        self.model.train()
        for module in self.model.modules():
            if is_frozen(module):
                module.eval()

    def _release_features(self) -> None:
        """Frozen towers compute again; the record keeps what was looked up in their place."""
        for name, encoder in self.cached.items():
            encoder.release()
            self.run.record.setdefault("features", {})[name] = encoder.report()
        self.cached = {}

    @property
    def fraction(self) -> float:
        """The share of the budget that is used."""
        return self.progress.fraction(self.budget)

    @property
    def stage_fraction(self) -> float:
        """The share of the current stage's budget that is used."""
        number = self.progress.stage
        begin = self.ends[number - 1] if number else 0.0
        return min(max((self.fraction - begin) / (self.ends[number] - begin), 0.0), 1.0)

    def step(self, stop: bool = False) -> dict[str, Tensor]:
        """Take one batch and one step of the optimiser; returns the losses. stop: whether this process was asked to."""
        progress, recipe = self.progress, self.recipe
        while progress.stage + 1 < len(self.stages) and self.fraction >= self.ends[progress.stage] - 1e-9:
            self.log_losses()  # the next stage may have others
            progress.stage += 1
            self.skipped_before |= self.reader.skipped
            self.data.close()
            self._enter(progress.stage, fresh=True)
            self._keep_features()
        stage = self.stages[progress.stage]
        started = time.perf_counter()
        batches = [to_device(batch, self.place.device) for batch in next(self.data)]
        self.reader.check()
        rate = stage.learning_rate * learning_rate(recipe, self.stage_fraction)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimiser.zero_grad(set_to_none=True)
        trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        if self.harmony is not None:
            losses = self.harmony.backward(
                self.model, batches, stage.loss_weights, self._forward, self.stage_fraction, self.place
            )
        else:
            losses = backward(self.model, self.losses_of, batches, stage.loss_weights, self._forward)
            self._average_gradients(trained)
        norm = clip_gradients(trained, recipe.clip_norm)
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if not math.isfinite(norm):
            bad.append("gradient")
        not_finite, stopping, elapsed = self.place.agree(bool(bad), stop, time.perf_counter() - started)
        self.stopping = bool(stopping)
        progress.step += 1
        progress.examples += recipe.batch_size
        progress.seconds += elapsed
        progress.flops += recipe.batch_size * self.flops_an_example
        self._count_tokens(batches)
        if self.budget.tokens is not None and not progress.tokens:
            raise UserError(
                "This recipe's batches have no tokens; give the budget in steps, examples, flops or seconds."
            )
        if not_finite:
            self._leave_out(bad, losses)
        else:
            progress.left_out_in_a_row = 0
            self.optimiser.step()
            if self.average is not None:
                self.average.follow()
            self.unlogged.append(losses)
        return losses

    @contextmanager
    def _forward(self, piece: int) -> Iterator[None]:
        """The surroundings of a forward pass: precision, and random numbers that follow from seed, step and place.

        Nothing random is carried from step to step, so a run that goes on draws what it would have drawn.
        """
        numbers = np.array([self.seed, self.progress.step, self.place.rank, piece], dtype=np.uint64)
        seed = np.uint64(0)
        for number in numbers:
            seed = mix(np.array([seed + number + np.uint64(1)]))[0]
        torch.manual_seed(int(seed >> np.uint64(1)))
        np.random.seed(int(seed >> np.uint64(32)))
        random.seed(int(seed))
        half = self.execution.precision == "bfloat16"
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=half):
            yield

    def _average_gradients(self, trained: list[nn.Parameter]) -> None:
        """What DistributedDataParallel and FSDP2 did not: several passes, or scalars, which cannot be cut."""
        if self.place.count == 1 or self.averages_itself:
            return
        left = [p.grad for p in trained if p.grad is not None and not (self.sharded and p.ndim)]
        self.place.average(left)

    def _count_tokens(self, batches: list[Batch]) -> None:
        for batch in batches:
            for value in batch.values():
                if isinstance(value, Tokens | PackedSequences):
                    self.progress.tokens += value.token_count * self.place.count
                    self.progress.places += value.place_count * self.place.count

    def _leave_out(self, bad: list[str], losses: Mapping[str, Tensor]) -> None:
        """Note a step that is not finite. Raises UserError when there were too many in a row."""
        progress = self.progress
        progress.left_out += 1
        progress.left_out_in_a_row += 1
        keys = self.data.keys(self.data.taken - 1)
        reports = self.place.collect((bad, keys))
        names, keys = next(report for report in reports if report[0])
        progress.log(left_out={"not_finite": names, "keys": keys})
        if progress.left_out_in_a_row > self.execution.skip_not_finite:
            name = names[0]
            what = "The gradient is not finite" if name == "gradient" else f"The loss '{name}' is {float(losses[name])}"
            more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
            again = (
                f" after {progress.left_out_in_a_row - 1} such steps in a row" if progress.left_out_in_a_row > 1 else ""
            )
            raise UserError(
                f"{what} at step {progress.step}{again}, with the examples {', '.join(keys[:KEYS_SHOWN])}{more}; use a "
                "smaller --learning-rate or a --clip-norm, or look at these examples."
            )

    def log_losses(self) -> None:
        """Mean losses since the last entry, over all processes."""
        if not self.unlogged:
            return
        names = sorted(self.unlogged[0])
        means = torch.stack([torch.stack([losses[name].float() for losses in self.unlogged]).mean() for name in names])
        self.place.average([means])
        rate = self.optimiser.param_groups[0]["lr"]
        losses = dict(zip(names, means.tolist(), strict=True))
        stage = {"stage": self.stages[self.progress.stage].name} if len(self.stages) > 1 else {}
        harmony = {"harmony": self.harmony.report()} if self.harmony is not None else {}
        self.tracker.log(self.progress.log(learning_rate=rate, losses=losses, **stage, **harmony))
        self.unlogged.clear()

    def validate(self, figures: Callable[[nn.Module, Any], Mapping[str, float]]) -> None:
        """Log figures of the method as it stands."""
        with self.averaged(), evaluating(self.model) as method:
            self.tracker.log(self.progress.log(validation=dict(figures(method, self.run.processor))))
            reshard(self.model)
        self._training_mode()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights that the run is about: their moving average, if the recipe has one."""
        if self.average is None:
            yield
        else:
            with self.average.applied():
                yield

    @property
    def checkpoint_due(self) -> bool:
        now, then = self.progress, self.saved
        return (
            self.every.fraction(
                steps=now.step - then.step,
                examples=now.examples - then.examples,
                seconds=now.seconds - then.seconds,
                tokens=now.tokens - then.tokens,
                flops=now.flops - then.flops,
            )
            >= 1
        )

    def save(self) -> None:
        """Write a checkpoint, beside the training. Raises UserError when the one before could not be written."""
        if self.writer is None:
            return
        self.log_losses()
        self.saved = copy.copy(self.progress)
        state = vars(self.progress) | {"taken": self.data.taken, "skipped": self._all_skipped()}
        self.writer.save(training_tensors(self.model, self.average, self.optimiser), state)

    def _all_skipped(self) -> dict[str, str]:
        """Unreadable examples of all processes and stages; also writes the list of them, and the curves."""
        skipped = {
            key: reason
            for found in self.place.collect(self.skipped_before | self.reader.skipped)
            for key, reason in found.items()
        }
        if self.place.first and self.run.directory is not None:
            lines = [json.dumps({"key": key, "reason": reason}) for key, reason in sorted(skipped.items())]
            write_text(self.run.directory / SKIPPED, "".join(f"{line}\n" for line in lines))
            self.run.save_history()
        return skipped

    def interrupt(self) -> Interrupted:
        """Save, and say how to go on."""
        step, directory = self.progress.step, self.run.directory
        if self.writer is None:
            return Interrupted(f"Stopped at step {step}; nothing was saved, because no folder was given.")
        self.save()
        self.writer.wait()
        self.tracker.close()
        if self.place.first:
            self.run.record["state"] = "interrupted"
            self.run.save_record()
        return Interrupted(f"Stopped and saved at step {step}; go on with: polymodal resume {directory}")

    def rescue(self, error: UserError) -> UserError:
        """Save what was trained before the data went missing, and say how to go on."""
        if self.writer is None or self.place.count > 1:  # the other processes are still waiting for this step
            return error
        self.save()
        self.writer.wait()
        return UserError(f"{error} Mend that, then go on with: polymodal resume {self.run.directory}")

    def finish(self) -> Run:
        """Write the result, remove the checkpoints."""
        run, progress = self.run, self.progress
        self._release_features()
        if self.average is not None:
            self.average.apply()
        state = {name: whole(tensor) for name, tensor in self.model.state_dict().items()}
        if self.sharded:
            self.model = self.recipe.build(run.processor)
            if self.recipe.lora_rank:
                add_lora(self.model, self.recipe.lora_rank, self.recipe.lora_targets)
            self.model.load_state_dict(state)
        merge_lora(self.model)
        run.model = self.model.requires_grad_(True).eval()
        skipped = self._all_skipped()
        run.record |= {
            "state": "finished",
            "steps": progress.step,
            "examples": progress.examples,
            "seconds": round(progress.seconds, 3),
            "tokens": progress.tokens,
            "flops_an_example": progress.flops / progress.examples,
            "fill": round(progress.fill, 4),
            "left_out_steps": progress.left_out,
            "skipped": len(skipped),
            "processes": self.place.count,
        }
        self.tracker.close()
        # DistributedDataParallel must be gone before the processes part: it would end their threads while it holds the
        # interpreter's lock, which these may be waiting for.
        self.losses_of = None
        gc.collect()
        if self.writer is not None:
            self.writer.wait()
            if self.place.first:
                run.save_result()
                run.save_record()
                remove_checkpoints(self.writer.directory)
            self.place.agree(0)  # no process goes on before the result is there
        return run


def flops(model: Any, batch: Batch, weights: Mapping[str, float]) -> tuple[int, bool]:
    """Floating-point operations of one forward and backward pass, and whether all that trains had a part in it.

    The model and the random state stay as they are.
    """
    state = torch.get_rng_state()
    twin = copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter:
        total(twin.losses(batch), weights).backward()
    torch.set_rng_state(state)
    all_used = all(parameter.grad is not None for parameter in twin.parameters() if parameter.requires_grad)
    return counter.get_total_flops(), all_used
