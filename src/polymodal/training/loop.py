"""Trainer of one run: its state, its steps, and its checkpoints."""

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
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader, TrainingData
from polymodal.data.sequence import PackedSequences
from polymodal.errors import UserError
from polymodal.layers.lora import add_lora, merge_lora
from polymodal.layers.transformer import Transformer
from polymodal.modalities.text import Tokens
from polymodal.rng import splitmix64
from polymodal.training.checkpoint import (
    CheckpointWriter,
    checkpoints,
    load_checkpoint,
    load_state,
    remove_checkpoints,
    remove_unfinished,
    training_tensors,
)
from polymodal.training.ema import ExponentialMovingAverage
from polymodal.training.feature_cache import CachedEncoder, cached_encoders, frozen_names, is_frozen
from polymodal.training.grad_cache import backward, halves, weighted_sum
from polymodal.training.optimizer import adamw, clip_gradients, learning_rate
from polymodal.training.parallel import World, check_batch, full_tensor, parallelize, reshard
from polymodal.training.run import SKIPPED, Run, evaluating, to_device, write_text
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.stages import active_stages, check_micro_batches, on_start, validate_stages
from polymodal.training.tracking import Tracker
from polymodal.types import Batch, Budget

KEYS_SHOWN = 5  # number of example keys in the error for a non-finite loss


class Interrupted(UserError):
    """Training was stopped by Ctrl-C or SIGTERM; progress is saved."""


class Measured(Protocol):
    """A metric of the validation split, such as an `evaluation.Score`."""

    @property
    def value(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def headline(self) -> int | None: ...


Validate = Callable[[nn.Module, Any], Mapping[str, Measured]]  # method, processor -> metrics by name


def meaning(metric: Measured) -> dict[str, Any]:
    """What a record says of a metric beside its values."""
    return {name: getattr(metric, name) for name in ("unit", "higher_is_better", "headline")}


@dataclass
class Progress:
    """Training state, part of every checkpoint.

    seconds: training time without validation. tokens, positions: real tokens, and positions including padding.
    skipped_steps: steps without an update, because a loss or gradient was not finite.
    """

    step: int = 0
    stage: int = 0
    examples: int = 0
    seconds: float = 0.0
    tokens: int = 0
    positions: int = 0
    flops: float = 0.0
    skipped_steps: int = 0
    consecutive_skipped_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def fraction(self, budget: Budget) -> float:
        return budget.fraction(
            steps=self.step, examples=self.examples, seconds=self.seconds, tokens=self.tokens, flops=self.flops
        )

    @property
    def packing_efficiency(self) -> float:
        """Fraction of positions that hold a real token; 1 without sequences."""
        return self.tokens / self.positions if self.positions else 1.0

    def log(self, **metrics: Any) -> dict[str, Any]:
        where = {"step": self.step, "examples": self.examples, "seconds": round(self.seconds, 3)}
        self.history.append(where | metrics)
        return self.history[-1]


class Trainer:
    """Trainer of one run; resumes from the newest checkpoint of its folder."""

    def __init__(self, run: Run, corpus: Corpus, budget: Budget, seed: int, runtime: RuntimeConfig, world: World):
        self.run = run
        self.corpus = corpus
        self.budget = budget
        self.seed = seed
        self.runtime = runtime
        self.every = Budget.parse(runtime.save_interval)
        self.world = world
        self.recipe = recipe = run.recipe
        self.stages = active_stages(recipe)
        validate_stages(self.stages, recipe, run.model)
        if runtime.micro_batch:
            check_micro_batches(self.stages, run.model)
        shares = [stage.fraction for stage in self.stages]
        self.ends = [end / sum(shares) for end in accumulate(shares)]
        self.model = run.model.to(world.device).train()
        if recipe.lora_rank:
            add_lora(self.model, recipe.lora_rank, recipe.lora_target_modules)
        self.learnable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.frozen = frozen_names(self.model, recipe.freeze)
        for module in self.model.modules():
            if isinstance(module, Transformer):
                module.activation_checkpointing = runtime.activation_checkpointing
            if runtime.compile and isinstance(module, nn.ModuleList):
                for entry in module:
                    entry.compile()
        self.cached: dict[str, CachedEncoder] = {}
        self.flops_an_example = 0.0
        self.losses_of: Any = None  # the method's losses, averaging gradients over processes where there are several
        self.transform = recipe.gradient_transform()
        group = self.transform.group_size if self.transform is not None else 0
        check_batch(recipe.batch_size, group, world.size)
        self.pieces = group or runtime.micro_batch or recipe.batch_size // world.size
        self.sharded = runtime.parallel == "fsdp" and world.size > 1
        if self.transform is not None and self.sharded:
            raise UserError("This recipe needs whole gradients of each loss; use --parallel ddp with it.")
        self.unlogged: list[dict[str, Tensor]] = []
        self.skipped_before: dict[str, str] = {}
        self.stopping = False
        self.updating = 0.0  # seconds of the last update, which count with the next step: processes agree on it there

        held = self._newest_checkpoint()
        state = load_state(held) if held is not None else None
        if state is not None:
            taken, self.skipped_before = state.pop("taken"), state.pop("skipped")
            self.progress = Progress(**state)
        else:
            self.progress = Progress()
        run.history = self.progress.history
        self._enter(self.progress.stage, fresh=state is None)
        self.ema = ExponentialMovingAverage(self.model, recipe.ema_decay) if recipe.ema_decay else None
        if held is not None:
            load_checkpoint(held, self.model, self.ema, self.optimizer, world)
            self.data.taken = taken
        self._keep_features()
        self.saved = copy.copy(self.progress)
        writes = run.directory is not None
        self.writer = (
            CheckpointWriter(run.directory, runtime.keep_checkpoints, world) if run.directory is not None else None
        )
        self.tracker = Tracker(runtime.logger if writes and world.first else "none", run, self.progress.step)

    def _newest_checkpoint(self) -> Path | None:
        if self.run.directory is None:
            return None
        if self.world.first:
            remove_unfinished(self.run.directory)
        self.world.all_reduce_max(0)  # no process looks before the first one has tidied up
        return next(reversed(checkpoints(self.run.directory)), None)

    def _enter(self, number: int, fresh: bool) -> None:
        """Begin a stage: set trainable parameters, data and a new optimizer."""
        self._release_features()
        stage = self.stages[number]
        recipe, model, world, runtime = self.recipe, self.model, self.world, self.runtime
        if fresh:
            on_start(stage, model)()
        call_hooks(model, "before_training")
        for name, parameter in model.named_parameters():
            wanted = any(fnmatchcase(name, pattern) for pattern in stage.trainable)
            parameter.requires_grad_(name in self.learnable and wanted and name not in self.frozen)
        self._training_mode()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"The stage '{stage.name}' trains nothing: no parameter is called {stage.trainable}.")
        corpus = self.corpus if stage.corpus is None else stage.corpus()
        self.reader = Reader(corpus, self.run.processor)
        self.reader.skipped |= self.skipped_before
        workers = runtime.num_threads if runtime.num_threads is not None else 0 if world.device.type == "cpu" else 4
        self.data = TrainingData(
            self.reader,
            recipe.batch_size,
            int(splitmix64(np.array([self.seed * len(self.stages) + number], dtype=np.uint64))[0] >> np.uint64(33)),
            getattr(recipe, stage.batch),
            micro_batch=self.pieces,
            process=world.rank,
            processes=world.size,
            num_threads=workers,
            num_workers=runtime.num_workers,
            length_bucketing=recipe.length_bucketing,
            length_modality=recipe.length_modality,
        )
        measured = self.run.record.setdefault("flops_by_stage", {})
        cut = self.sharded and self.losses_of is not None  # in an earlier stage
        all_used = True
        if not cut and (str(number) not in measured or (world.size > 1 and not self.sharded)):
            batch = to_device(self.data.batch(0)[0], world.device)
            operations, all_used = flops(model, batch, stage.loss_weights, stage.losses)
            measured.setdefault(str(number), operations / self.pieces)
        # What is cut over processes already cannot be measured: a stage that begins there counts as the one before.
        self.flops_an_example = measured.get(str(number), self.flops_an_example)
        # DistributedDataParallel is built for what trains now; FSDP2 looks again in every step.
        if cut:
            self.losses_of = getattr(model, stage.losses)
        else:
            one_pass = self.transform is None and self.pieces == recipe.batch_size // world.size
            called = [name for one in self.stages for name in (one.losses, *(halves(model, one.losses) or ()))]
            self.losses_of = parallelize(model, world, runtime.parallel, one_pass, all_used, stage.losses, called)
            self.averages_itself = self.losses_of != getattr(model, stage.losses)
        self.optimizer = adamw(model, recipe, stage.lr_scales)

    def _keep_features(self) -> None:
        """Cache the outputs of frozen encoders from now on, under a key of their current weights."""
        # A sharded tower gathers its weights together with the other processes, which may have nothing new to compute.
        if self.runtime.cache_features and not self.sharded:
            unchanged = [name for name in self.recipe.cacheable_encoders() if is_frozen(self.model.get_submodule(name))]
            self.cached = cached_encoders(self.model, unchanged)

    def _training_mode(self) -> None:
        """Set training mode, but evaluation mode for frozen modules (no dropout)."""
        self.model.train()
        for module in self.model.modules():
            if is_frozen(module):
                module.eval()

    def _release_features(self) -> None:
        """Stop caching; the record keeps the cache statistics."""
        for name, encoder in self.cached.items():
            encoder.release()
            self.run.record.setdefault("features", {})[name] = encoder.report()
        self.cached = {}

    @property
    def fraction(self) -> float:
        """Fraction of the budget that is used."""
        return self.progress.fraction(self.budget)

    @property
    def stage_fraction(self) -> float:
        """Fraction of the current stage's budget that is used."""
        number = self.progress.stage
        begin = self.ends[number - 1] if number else 0.0
        return min(max((self.fraction - begin) / (self.ends[number] - begin), 0.0), 1.0)

    def step(self, stop: bool = False) -> dict[str, Tensor]:
        """Take one optimizer step; return the losses. stop: whether this process received a stop signal."""
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
        batches = [to_device(batch, self.world.device) for batch in next(self.data)]
        self.reader.check()
        rate = stage.lr_scale * learning_rate(recipe, self.stage_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.transform is not None:
            losses = self.transform.backward(
                self.model, batches, stage.loss_weights, self._forward, self.stage_fraction, self.world, stage.losses
            )
        else:
            losses = backward(self.model, self.losses_of, batches, stage.loss_weights, self._forward, stage.losses)
            self._average_gradients(trained)
        norm = clip_gradients(trained, recipe.max_grad_norm)
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if not math.isfinite(norm):
            bad.append("gradient")
        not_finite, stopping, elapsed = self.world.all_reduce_max(
            bool(bad), stop, time.perf_counter() - started + self.updating
        )
        self.stopping = bool(stopping)
        progress.step += 1
        progress.examples += recipe.batch_size
        progress.seconds += elapsed
        progress.flops += recipe.batch_size * self.flops_an_example
        self._count_tokens(batches)
        started = time.perf_counter()
        if self.budget.tokens is not None and not progress.tokens:
            raise UserError(
                "This recipe's batches have no tokens; give the budget in steps, examples, flops or seconds."
            )
        if not_finite:
            self._skip_step(bad, losses)
        else:
            progress.consecutive_skipped_steps = 0
            self.optimizer.step()
            call_hooks(self.model, "after_step", self.stage_fraction)
            if self.ema is not None:
                self.ema.update()
            self.unlogged.append(losses)
        self.updating = time.perf_counter() - started
        return losses

    @contextmanager
    def _forward(self, piece: int) -> Iterator[None]:
        """Set up a forward pass: autocast, and random numbers derived from seed, step, rank and micro-batch.

        No random state is carried between steps, so a resumed run samples the same numbers.
        """
        numbers = np.array([self.seed, self.progress.step, self.world.rank, piece], dtype=np.uint64)
        seed = np.uint64(0)
        for number in numbers:
            seed = splitmix64(np.array([seed + number + np.uint64(1)]))[0]
        torch.manual_seed(int(seed >> np.uint64(1)))
        np.random.seed(int(seed >> np.uint64(32)))
        random.seed(int(seed))
        half = self.runtime.precision == "bfloat16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=half):
            yield

    def _average_gradients(self, trained: list[nn.Parameter]) -> None:
        """Average gradients where DDP and FSDP2 did not: after several passes, and for scalars, which are not
        sharded."""
        if self.world.size == 1 or self.averages_itself:
            return
        left = [p.grad for p in trained if p.grad is not None and not (self.sharded and p.ndim)]
        self.world.all_reduce_mean(left)

    def _count_tokens(self, batches: list[Batch]) -> None:
        for batch in batches:
            for value in batch.values():
                if isinstance(value, Tokens | PackedSequences):
                    self.progress.tokens += value.token_count * self.world.size
                    self.progress.positions += value.position_count * self.world.size

    def _skip_step(self, bad: list[str], losses: Mapping[str, Tensor]) -> None:
        """Record a step with non-finite loss or gradient. Raises UserError after too many in a row."""
        progress = self.progress
        progress.skipped_steps += 1
        progress.consecutive_skipped_steps += 1
        keys = self.data.keys(self.data.taken - 1)
        reports = self.world.all_gather_object((bad, keys))
        names, keys = next(report for report in reports if report[0])
        progress.log(skipped_step={"not_finite": names, "keys": keys})
        if progress.consecutive_skipped_steps > self.runtime.max_nonfinite_steps:
            name = names[0]
            what = "The gradient is not finite" if name == "gradient" else f"The loss '{name}' is {float(losses[name])}"
            more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
            again = (
                f" after {progress.consecutive_skipped_steps - 1} such steps in a row"
                if progress.consecutive_skipped_steps > 1
                else ""
            )
            raise UserError(
                f"{what} at step {progress.step}{again}, with the examples {', '.join(keys[:KEYS_SHOWN])}{more}; use a "
                "smaller --learning-rate or a --max-grad-norm, or look at these examples."
            )

    def log_losses(self) -> None:
        """Log the mean losses since the last entry, over all processes."""
        if not self.unlogged:
            return
        names = sorted(self.unlogged[0])
        means = torch.stack([torch.stack([losses[name].float() for losses in self.unlogged]).mean() for name in names])
        self.world.all_reduce_mean([means])
        rate = self.optimizer.param_groups[0]["lr"]
        losses = dict(zip(names, means.tolist(), strict=True))
        stage = {"stage": self.stages[self.progress.stage].name} if len(self.stages) > 1 else {}
        report = self.transform.report() if self.transform is not None else {}
        self.tracker.log(self.progress.log(learning_rate=rate, losses=losses, **stage, **report))
        self.unlogged.clear()

    def validate(self, validate: Validate) -> None:
        """Log validation metrics of the current (EMA) weights, and record what their values mean."""
        with self.averaged(), evaluating(self.model) as method:
            found = validate(method, self.run.processor)
            self.tracker.log(self.progress.log(validation={name: score.value for name, score in found.items()}))
            self.run.record.setdefault("metrics", {}).update({name: meaning(score) for name, score in found.items()})
            reshard(self.model)
        self._training_mode()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the EMA weights inside the block, if the recipe has an EMA."""
        if self.ema is None:
            yield
        else:
            with self.ema.swap_in():
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
        """Write a checkpoint in the background. Raises UserError when the previous one could not be written."""
        if self.writer is None:
            return
        self.log_losses()
        self.saved = copy.copy(self.progress)
        state = vars(self.progress) | {"taken": self.data.taken, "skipped": self._all_skipped()}
        self.writer.save(training_tensors(self.model, self.ema, self.optimizer), state)

    def _all_skipped(self) -> dict[str, str]:
        """Collect unreadable examples of all processes and stages; write their list, and the history."""
        skipped = {
            key: reason
            for found in self.world.all_gather_object(self.skipped_before | self.reader.skipped)
            for key, reason in found.items()
        }
        if self.world.first and self.run.directory is not None:
            lines = [json.dumps({"key": key, "reason": reason}) for key, reason in sorted(skipped.items())]
            write_text(self.run.directory / SKIPPED, "".join(f"{line}\n" for line in lines))
            self.run.save_history()
        return skipped

    def interrupt(self) -> Interrupted:
        """Save a checkpoint and return the error that says how to resume."""
        step, directory = self.progress.step, self.run.directory
        if self.writer is None:
            return Interrupted(f"Stopped at step {step}; nothing was saved, because no folder was given.")
        self.save()
        self.writer.wait()
        self.tracker.close()
        if self.world.first:
            self.run.record["state"] = "interrupted"
            self.run.save_record()
        return Interrupted(f"Stopped and saved at step {step}; go on with: polymodal resume {directory}")

    def rescue(self, error: UserError) -> UserError:
        """Save a checkpoint after a data error and return the error that says how to resume."""
        if self.writer is None or self.world.size > 1:  # the other processes are still waiting for this step
            return error
        self.save()
        self.writer.wait()
        return UserError(f"{error} Mend that, then go on with: polymodal resume {self.run.directory}")

    def finish(self) -> Run:
        """Write the final weights and remove the checkpoints."""
        run, progress = self.run, self.progress
        self._release_features()
        if self.ema is not None:
            self.ema.apply()
        state = {name: full_tensor(tensor) for name, tensor in self.model.state_dict().items()}
        if self.sharded:
            self.model = self.recipe.build(run.processor)
            if self.recipe.lora_rank:
                add_lora(self.model, self.recipe.lora_rank, self.recipe.lora_target_modules)
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
            "packing_efficiency": round(progress.packing_efficiency, 4),
            "skipped_steps": progress.skipped_steps,
            "skipped": len(skipped),
            "processes": self.world.size,
        }
        self.tracker.close()
        # DistributedDataParallel must be gone before the processes part: it would end their threads while it holds the
        # interpreter's lock, which these may be waiting for.
        self.losses_of = None
        gc.collect()
        if self.writer is not None:
            self.writer.wait()
            if self.world.first:
                run.save_result()
                run.save_record()
                remove_checkpoints(self.writer.directory)
            self.world.all_reduce_max(0)  # no process goes on before the result is there
        return run


def call_hooks(model: nn.Module, name: str, *arguments: float) -> None:
    """Call a method on every submodule that has one of this name.

    `before_training()`: when a stage begins, before the weights are distributed. `after_step(fraction)`: after an
    optimizer step, before the moving average of the weights; fraction: of the stage that is done.
    """
    for module in model.modules():
        if (hook := getattr(module, name, None)) is not None:
            hook(*arguments)


def flops(model: Any, batch: Batch, weights: Mapping[str, float], losses: str = "losses") -> tuple[int, bool]:
    """Return the FLOPs of one forward and backward pass, and whether all trainable parameters got a gradient.

    Model and random state stay unchanged.
    """
    state = torch.get_rng_state()
    twin = copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter:
        weighted_sum(getattr(twin, losses)(batch), weights).backward()
    torch.set_rng_state(state)
    all_used = all(parameter.grad is not None for parameter in twin.parameters() if parameter.requires_grad)
    return counter.get_total_flops(), all_used
