"""The stages of a recipe: which of them train, whether the methods that they name exist, and which parameters each
one trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from polymodal.errors import UserError, unknown
from polymodal.training.feature_cache import is_frozen
from polymodal.types import Stage

ROUNDING = 1e-9  # a fraction below it is what rounding left of 0


def active_stages(recipe: Any) -> tuple[Stage, ...]:
    """The stages of a recipe that have a fraction of the budget.

    Raises UserError for a negative fraction, which a stage that gets the remainder has where the others add up to more
    than 1, and where no stage is left.
    """
    stages = recipe.stages()
    for stage in stages:
        if stage.fraction < -ROUNDING:
            others = ", ".join(f"'{one.name}' ({one.fraction:.3g})" for one in stages if one.fraction > ROUNDING)
            raise UserError(
                f"The stages {others} leave less than nothing for '{stage.name}' ({stage.fraction:.3g}); make their "
                "fractions of the budget smaller, so that together they are at most 1."
            )
    active = tuple(stage for stage in stages if stage.fraction > ROUNDING)
    if not active:
        raise UserError("Nothing would be trained: the fractions of all stages are 0.")
    return active


def validate_stages(stages: Sequence[Stage], recipe: Any, method: Any) -> None:
    """Raises UserError for a stage that names a method which the recipe or the method does not have."""
    for stage in stages:
        for owner, name, what in _named(stage, recipe, method):
            if not callable(getattr(owner, name, None)):
                known = [one for one in dir(type(owner)) if not one.startswith("_") and callable(getattr(owner, one))]
                raise unknown(f"{what} in {type(owner).__name__} for the stage '{stage.name}'", name, known)


def check_micro_batches(stages: Sequence[Stage], method: Any) -> None:
    """Raises UserError for losses that micro-batches would change, because they compare the examples of a batch, and
    for batch norm that a stage trains."""
    modules = method.named_modules() if isinstance(method, nn.Module) else ()
    norms = [f"{name}.weight" for name, module in modules if isinstance(module, _BatchNorm)]
    for stage in stages:
        if getattr(getattr(type(method), stage.losses, None), "whole_batch", False):
            raise UserError(
                f"The losses of the stage '{stage.name}' compare the examples of a batch, which micro-batches would "
                "change; leave --micro-batch out, and use --activation-checkpointing to save memory."
            )
        if any(fnmatchcase(name, pattern) for name in norms for pattern in stage.trainable):
            raise UserError(
                f"The stage '{stage.name}' trains batch norm, which looks at the whole batch; leave out --micro-batch."
            )


def check_groups(method: Any, examples: int) -> None:
    """Raises UserError when examples of a group, which the losses compare, would be in different forward passes.

    A method says so by `group_size`. examples: of a forward pass.
    """
    size = getattr(method, "group_size", 1)
    if examples % size:
        raise UserError(
            f"The losses compare groups of {size} examples, into which the {examples} of a forward pass do not divide; "
            f"choose --batch-size and --micro-batch such that a process has a multiple of {size} in each."
        )


def on_start(stage: Stage, method: Any) -> Callable[[], object]:
    """What the stage does before its first step."""
    start = stage.on_start
    if start is None:
        return lambda: None
    return getattr(method, start) if isinstance(start, str) else lambda: start(method)


def set_trainable(stage: Stage, model: nn.Module, learnable: Set[str]) -> None:
    """Let the stage's parameters require gradients, and no others. learnable: names of what a stage may train.

    Raises UserError when none is left.
    """
    for name, parameter in model.named_parameters():
        selected = any(fnmatchcase(name, pattern) for pattern in stage.trainable)
        parameter.requires_grad_(selected and name in learnable)
    training_mode(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"The stage '{stage.name}' trains nothing: no parameter is called {stage.trainable}.")


def training_mode(model: nn.Module) -> None:
    """Set training mode, but evaluation mode for frozen modules (no dropout)."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()


def call_hooks(model: nn.Module, name: str, *arguments: float) -> None:
    """Call a method on every submodule that has one of this name.

    `before_training()`: when a stage begins, before the weights are distributed. `after_step(fraction)`: after an
    optimizer step, before the moving average of the weights; fraction: of the stage that is done.
    """
    for module in model.modules():
        if (hook := getattr(module, name, None)) is not None:
            hook(*arguments)


def _named(stage: Stage, recipe: Any, method: Any) -> Iterator[tuple[Any, str, str]]:
    yield recipe, stage.batch, "batch"
    if stage.rows is not None:
        yield recipe, stage.rows, "rows"
    yield method, stage.losses, "losses"
    yield from ((recipe, name, what) for name, what in ((stage.order, "order"), (stage.mine, "mine")) if name)
    if (counts := getattr(getattr(type(method), stage.losses, None), "counts", None)) is not None:
        yield method, counts, "counts"
    if isinstance(stage.on_start, str):
        yield method, stage.on_start, "on_start"
