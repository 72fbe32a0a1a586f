"""Trainer of one run: its state, its steps, and its checkpoints."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.rng import splitmix64
from polymodal.training.checkpoint import CheckpointWriter, remove_unfinished
from polymodal.training.checkpoint_reading import load_checkpoint, local, newest_whole, not_finite, training_tensors
from polymodal.training.ema import ExponentialMovingAverage
from polymodal.training.feature_cache import CachedEncoder, cached_encoders, is_frozen
from polymodal.training.grad_cache import backward
from polymodal.training.nonfinite import nonfinite_error, nonfinite_names, nonfinite_weights
from polymodal.training.optimizer import clip_gradients, learning_rate
from polymodal.training.parallel import World, reshard
from polymodal.training.progress import Progress, SavedState
from polymodal.training.run import Run, evaluating, to_device
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.stage_setup import StageSetup
from polymodal.training.stages import call_hooks, training_mode
from polymodal.training.tracking import Tracker
from polymodal.training.validation import Measured, Validate, meaning
from polymodal.types import Batch, Budget


class Trainer:
    """Trainer of one run; resumes from the newest checkpoint of its folder."""

    def __init__(self, run: Run, corpus: Corpus, budget: Budget, seed: int, runtime: RuntimeConfig, world: World):
        self.run = run
        self.recipe = run.recipe
        self.budget = budget
        self.seed = seed
        self.runtime = runtime
        self.world = world
        self.setup = StageSetup(run, corpus, seed, runtime, world)
        self.stages, self.ends, self.sharded = self.setup.stages, self.setup.ends, self.setup.sharded
        self.model, self.transform = self.setup.model, self.setup.transform
        self.cached: dict[str, CachedEncoder] = {}
        self.unlogged: list[dict[str, Tensor]] = []
        self.stopping = False
        self.save_interval = Budget.parse(runtime.save_interval)
        self._resume_or_begin()
        self.updating = 0.0  # seconds of the last update, which count with the next step: processes agree on it there
        self.writer = CheckpointWriter(run.directory, runtime.keep_checkpoints, world) if run.directory else None
        self.tracker = Tracker(runtime.logger if self.writer and world.first else "none", run, self.progress.step)

    def _resume_or_begin(self) -> None:
        """Enter the stage of the newest checkpoint and restore its state; the first stage without a checkpoint."""
        checkpoint, state = self._newest_checkpoint()
        self.progress, self.skipped_before = state.progress, state.skipped
        if self.progress.stage >= len(self.stages):
            raise UserError(f"{checkpoint} is of stage {self.progress.stage}, which the recipe lacks; remove it.")
        self.run.history = self.progress.history
        fresh = checkpoint is None
        self.active = self.setup.enter(self.progress.stage, fresh, self.skipped_before, before=None)
        self.progress.stage_name = self._stage_name
        decay = self.recipe.optimizer.ema_decay
        self.ema = ExponentialMovingAverage(self.model, decay) if decay else None
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.model, self.ema, self.active.optimizer, self.world)
            self.active.data.taken = state.taken
        self._keep_features()
        self.saved = copy.copy(self.progress)

    def _newest_checkpoint(self) -> tuple[Path | None, SavedState]:
        """Return the newest whole checkpoint and its state. Raises UserError when all are damaged."""
        new = None, SavedState(Progress(), 0, {})
        if self.run.directory is None:
            return new
        if self.world.first:
            remove_unfinished(self.run.directory)
        self.world.all_reduce_max(0)  # no process looks before the first one has tidied up
        return newest_whole(self.run.directory, warn=self.world.first) or new

    def _keep_features(self) -> None:
        """Cache the outputs of frozen encoders from now on, under a key of their current weights."""
        # A sharded tower gathers its weights together with the other processes, which may have nothing new to compute.
        if self.runtime.cache_features and not self.sharded:
            unchanged = [name for name in self.recipe.cacheable_encoders() if is_frozen(self.model.get_submodule(name))]
            self.cached = cached_encoders(self.model, unchanged)

    def release_features(self) -> None:
        """Stop caching; the record keeps the cache statistics."""
        for name, encoder in self.cached.items():
            encoder.release()
            self.run.record.setdefault("features", {})[name] = encoder.report()
        self.cached = {}

    @property
    def _stage_name(self) -> str:
        return self.active.stage.name if len(self.stages) > 1 else ""

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
        self._enter_due_stages()
        progress, recipe, active = self.progress, self.recipe, self.active
        started = time.perf_counter()
        batches = [to_device(batch, self.world.device) for batch in next(active.data)]
        active.reader.check()
        self._set_learning_rate()
        trained = [parameter for group in active.optimizer.param_groups for parameter in group["params"]]
        losses = self._backward(batches, trained)
        bad = nonfinite_names(losses, clip_gradients(trained, recipe.optimizer.max_grad_norm))
        elapsed = time.perf_counter() - started + self.updating
        not_finite, stopping, elapsed = self.world.all_reduce_max(bool(bad), stop, elapsed)
        self.stopping = bool(stopping)
        progress.count_step(recipe.batch_size, elapsed, recipe.batch_size * active.flops_an_example)
        progress.count_tokens(batches, self.world.size)
        started = time.perf_counter()
        if self.budget.tokens is not None and not progress.tokens:
            raise UserError(
                "This recipe's batches have no tokens; give the budget in steps, examples, flops or seconds."
            )
        if not_finite:
            self._skip_step(bad, losses)
        else:
            self._update_weights()
            self.unlogged.append(losses)
        self.updating = time.perf_counter() - started
        return losses

    def _enter_due_stages(self) -> None:
        """Enter the next stage, or several, where the current one has used its fraction of the budget."""
        progress = self.progress
        while progress.stage + 1 < len(self.stages) and self.fraction >= self.ends[progress.stage] - 1e-9:
            self.log_losses()  # the next stage may have others
            progress.stage += 1
            self.skipped_before |= self.active.reader.skipped
            self.active.data.close()
            self.release_features()
            self.active = self.setup.enter(progress.stage, True, self.skipped_before, self.active)
            progress.stage_name = self._stage_name
            self._keep_features()

    def _set_learning_rate(self) -> None:
        rate = self.active.stage.lr_scale * learning_rate(self.recipe.optimizer, self.stage_fraction)
        for group in self.active.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _backward(self, batches: list[Batch], trained: list[nn.Parameter]) -> dict[str, Tensor]:
        """Set the gradients of a step, averaged over processes; return the losses, detached."""
        stage = self.active.stage
        self.active.optimizer.zero_grad(set_to_none=True)
        if self.transform is not None:
            return self.transform.backward(
                self.model, batches, stage.loss_weights, self._forward, self.stage_fraction, self.world, stage.losses
            )
        losses = backward(
            self.model, self.active.losses_of, batches, stage.loss_weights, self._forward, stage.losses, self.world
        )
        self._average_gradients(trained)
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
        if self.world.size == 1 or self.active.averages_itself:
            return
        left = [p.grad for p in trained if p.grad is not None and not (self.sharded and p.ndim)]
        self.world.all_reduce_mean(left)

    def _update_weights(self) -> None:
        self.progress.consecutive_skipped_steps = 0
        self.active.optimizer.step()
        call_hooks(self.model, "after_step", self.stage_fraction)
        if self.ema is not None:
            self.ema.update()

    def _skip_step(self, bad: list[str], losses: Mapping[str, Tensor]) -> None:
        """Record a step with non-finite loss or gradient. Raises UserError after too many in a row."""
        progress = self.progress
        progress.skipped_steps += 1
        progress.consecutive_skipped_steps += 1
        keys = self.active.data.keys(self.active.data.taken - 1)
        reports = self.world.all_gather_object((bad, keys))
        names, keys = next(report for report in reports if report[0])
        progress.log(skipped_step={"not_finite": names, "keys": keys})
        if progress.consecutive_skipped_steps > self.runtime.max_nonfinite_steps:
            raise nonfinite_error(names[0], losses, progress.step, progress.consecutive_skipped_steps, keys)

    def log_losses(self) -> None:
        """Log the mean losses since the last entry, over all processes."""
        if not self.unlogged:
            return
        names = sorted(self.unlogged[0])
        means = torch.stack([torch.stack([losses[name].float() for losses in self.unlogged]).mean() for name in names])
        self.world.all_reduce_mean([means])
        rate = self.active.optimizer.param_groups[0]["lr"]
        losses = dict(zip(names, means.tolist(), strict=True))
        stage = {"stage": self._stage_name} if self._stage_name else {}
        report = self.transform.report() if self.transform is not None else {}
        self.tracker.log(self.progress.log(learning_rate=rate, losses=losses, **stage, **report))
        self.unlogged.clear()

    def validate(self, validate: Validate) -> Mapping[str, Measured]:
        """Log and return validation metrics of the current (EMA) weights; record what their values mean."""
        with self.averaged(), evaluating(self.model) as method:
            found = validate(method, self.run.processor)
            self.tracker.log(self.progress.log(validation={name: score.value for name, score in found.items()}))
            self.run.record.setdefault("metrics", {}).update({name: meaning(score) for name, score in found.items()})
            reshard(self.model)
        training_mode(self.model)
        return found

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the EMA weights inside the block, if the recipe has an EMA."""
        if self.ema is None:
            yield
        else:
            with self.ema.swap_in():
                yield

    def check_finite(self) -> None:
        """Raise UserError, in all processes, when a weight is not finite."""
        tensors = {name: local(tensor) for name, tensor in self.model.state_dict().items()}
        name = not_finite(tensors, {name for name, _ in self.model.named_parameters()})
        if names := [one for one in self.world.all_gather_object(name) if one]:
            raise nonfinite_weights(names[0], self.progress.step, self.run.directory)

    @property
    def checkpoint_due(self) -> bool:
        return self.progress.fraction_since(self.saved, self.save_interval) >= 1

    def save(self) -> None:
        """Write a checkpoint in the background.

        Raises UserError when the previous one could not be written, and for weights that are not finite, which would
        replace a good checkpoint.
        """
        if self.writer is None:
            return
        self.check_finite()
        self.log_losses()
        self.saved = copy.copy(self.progress)
        state = vars(self.progress) | {"taken": self.active.data.taken, "skipped": self.write_skipped()}
        self.writer.save(training_tensors(self.model, self.ema, self.active.optimizer), state)

    def write_skipped(self) -> dict[str, str]:
        """Collect unreadable examples of all processes and stages; write their list, and the history."""
        skipped = {
            key: reason
            for found in self.world.all_gather_object(self.skipped_before | self.active.reader.skipped)
            for key, reason in found.items()
        }
        if self.world.first and self.run.directory is not None:
            self.run.save_skipped(skipped)
            self.run.save_history()
        return skipped
