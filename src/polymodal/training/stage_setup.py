"""What happens when a stage begins: trainable parameters, data, FLOPs of an example, distribution, optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader, TrainingData
from polymodal.errors import UserError
from polymodal.layers.lora import add_lora
from polymodal.rng import splitmix64
from polymodal.training.activation_checkpointing import checkpoint_activations
from polymodal.training.feature_cache import frozen_names
from polymodal.training.flops import flops
from polymodal.training.grad_cache import halves
from polymodal.training.optimizer import adamw
from polymodal.training.parallel import World, check_batch, parallelize, reshard
from polymodal.training.run import Run, to_device
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.stage_order import in_order
from polymodal.training.stages import (
    active_stages,
    call_hooks,
    check_groups,
    check_micro_batches,
    on_start,
    set_trainable,
    validate_stages,
)
from polymodal.types import Stage


@dataclass
class ActiveStage:
    """What the steps of a stage use.

    losses_of: the method's losses, averaging gradients over processes where `averages_itself`. flops_an_example: of a
    forward and backward pass.
    """

    stage: Stage
    data: TrainingData
    losses_of: Any
    averages_itself: bool
    flops_an_example: float
    optimizer: torch.optim.AdamW
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = self.data.reader


class StageSetup:
    """Prepares the model of a run for training, and each of its stages when it begins."""

    def __init__(self, run: Run, corpus: Corpus, seed: int, runtime: RuntimeConfig, world: World):
        """Raises UserError for stages, micro-batches or processes that do not fit the recipe."""
        self.run = run
        self.recipe = recipe = run.recipe
        self.corpus = corpus
        self.seed = seed
        self.runtime = runtime
        self.world = world
        self.sharded = runtime.parallel == "fsdp" and world.size > 1
        self.stages = active_stages(recipe)
        validate_stages(self.stages, recipe, run.model)
        if runtime.micro_batch:
            check_micro_batches(self.stages, run.model)
        fractions = [stage.fraction for stage in self.stages]
        self.ends = [end / sum(fractions) for end in accumulate(fractions)]  # as fractions of the budget
        self.model = run.model.to(world.device).train()
        if recipe.lora_rank:
            add_lora(self.model, recipe.lora_rank, recipe.lora_target_modules)
        learnable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.learnable = learnable - frozen_names(self.model, recipe.freeze)
        configure_blocks(self.model, runtime)
        self.transform = recipe.gradient_transform()
        self.pieces = self._examples_per_pass()
        check_groups(run.model, self.pieces)

    def _examples_per_pass(self) -> int:
        """Return the examples of each backward pass in a process. Raises UserError where the batch does not divide."""
        recipe, world = self.recipe, self.world
        group = self.transform.group_size if self.transform is not None else 0
        check_batch(recipe.batch_size, group, world.size)
        if self.transform is not None and self.sharded:
            raise UserError("This recipe needs whole gradients of each loss; use --parallel ddp with it.")
        return group or self.runtime.micro_batch or recipe.batch_size // world.size

    def enter(self, number: int, fresh: bool, skipped: dict[str, str], before: ActiveStage | None) -> ActiveStage:
        """Begin a stage. fresh: not resumed in its middle. skipped: unreadable examples of earlier stages, by key.

        Raises UserError when the stage trains nothing.
        """
        stage = self.stages[number]
        if fresh:
            on_start(stage, self.model)()
        call_hooks(self.model, "before_training")
        set_trainable(stage, self.model, self.learnable)
        data = self._open_data(stage, number, skipped, fresh)
        measured = self.run.record.setdefault("flops_by_stage", {})
        if self.sharded and before is not None:  # FSDP2 looks in every step for what trains
            losses_of, averages_itself = getattr(self.model, stage.losses), before.averages_itself
            # What is sharded already cannot be measured: a stage that begins there counts as the one before.
            flops_an_example = measured.get(str(number), before.flops_an_example)
        else:
            all_used = self._measure_flops(stage, number, data, measured)
            flops_an_example = measured[str(number)]
            losses_of, averages_itself = self._distribute(stage, all_used)
        reshard(self.model)  # what is mined with the model leaves its parameters gathered
        optimizer = adamw(self.model, self.recipe.optimizer, stage.lr_scales)
        return ActiveStage(stage, data, losses_of, averages_itself, flops_an_example, optimizer)

    def _open_data(self, stage: Stage, number: int, skipped: dict[str, str], fresh: bool) -> TrainingData:
        """Open the batches of a stage: of its own corpus or the run's, all training rows or those that it selects, in
        its own order, or shuffled."""
        recipe, world, runtime = self.recipe, self.world, self.runtime
        corpus = self.corpus if stage.corpus is None else stage.corpus()
        if stage.rows is not None:
            rows = getattr(recipe, stage.rows)(corpus, self.run.processor)
            corpus = corpus.with_splits({**corpus.splits, "train": rows})
        reader = Reader(in_order(corpus, stage, number, self.run, fresh, world), self.run.processor)
        reader.skipped |= skipped
        threads = runtime.num_threads if runtime.num_threads is not None else 0 if world.device.type == "cpu" else 4
        return TrainingData(
            reader,
            recipe.batch_size,
            int(splitmix64(np.array([self.seed * len(self.stages) + number], dtype=np.uint64))[0] >> np.uint64(33)),
            getattr(recipe, stage.batch),
            micro_batch=self.pieces,
            process=world.rank,
            processes=world.size,
            num_threads=threads,
            num_workers=runtime.num_workers,
            length_bucketing=recipe.length_bucketing,
            length_modality=recipe.length_modality,
        )

    def _measure_flops(self, stage: Stage, number: int, data: TrainingData, measured: dict[str, float]) -> bool:
        """Measure the FLOPs of an example once per stage; return whether every trainable parameter got a gradient."""
        if str(number) in measured and (self.world.size == 1 or self.sharded):
            return True
        batch = to_device(data.batch(0)[0], self.world.device)
        operations, all_used = flops(self.model, batch, stage.loss_weights, stage.losses)
        measured.setdefault(str(number), operations / self.pieces)
        return all_used

    def _distribute(self, stage: Stage, all_used: bool) -> tuple[Any, bool]:
        """Return the losses, distributed for what the stage trains, and whether they average gradients themselves."""
        model, world = self.model, self.world
        one_pass = self.transform is None and self.pieces == self.recipe.batch_size // world.size
        called = [name for one in self.stages for name in (one.losses, *(halves(model, one.losses) or ()))]
        losses_of = parallelize(model, world, self.runtime.parallel, one_pass, all_used, stage.losses, called)
        return losses_of, losses_of != getattr(model, stage.losses)


def configure_blocks(model: nn.Module, runtime: RuntimeConfig) -> None:
    """Checkpoint the activations of blocks, and compile the entries of each ModuleList, as configured."""
    if runtime.activation_checkpointing:
        checkpoint_activations(model)
    for module in model.modules():
        if runtime.compile and isinstance(module, nn.ModuleList):
            for entry in module:
                entry.compile()
