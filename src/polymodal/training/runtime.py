"""How a run is executed. None of it belongs to the recipe: results differ by rounding at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polymodal.constraints import NonNegativeInt, PositiveInt, validate_constraints
from polymodal.errors import UserError
from polymodal.types import Budget


@dataclass(frozen=True)
class RuntimeConfig:
    """On what, in which pieces, and how safely a run is executed."""

    device: str | None = None
    """Where to compute, such as cpu or cuda:1; by default a GPU when there is one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes (torchrun): every one has the whole model, or each a part of it (FSDP2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the computation (autocast); weights and losses stay float32."""
    micro_batch: NonNegativeInt = 0
    """Examples a process computes at once, to save memory; 0 is all of its batch. Methods that compare examples keep
    the whole batch as negatives (gradient caching); others take the mean over micro-batches."""
    activation_checkpointing: bool = False
    """Keep no activations inside transformer blocks and compute them again in the backward pass, to save memory."""
    compile: bool = False
    """Compile transformer blocks (torch.compile); pays for long runs on a GPU."""
    num_threads: NonNegativeInt | None = None
    """Threads that prepare batches during a step; by default 4 with a GPU, and 0 on a CPU, where they would compete."""
    num_workers: NonNegativeInt = 0
    """Processes that prepare batches in place of threads, where Python's own work (and not decoding, during which
    threads run side by side) holds reading up."""
    cache_features: bool = True
    """Compute frozen towers once an input and keep that on disk, where a recipe does not augment what they see."""
    save_interval: str = "60s"
    """How often to save, such as 10steps, 5000examples, 60s or 20m."""
    keep_checkpoints: PositiveInt = 1
    """How many of the newest checkpoints to keep."""
    max_nonfinite_steps: NonNegativeInt = 5
    """How many steps in a row may be left out because a loss or gradient is not finite, before the run stops."""
    logger: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where curves are written while training; wandb and trackio must be installed."""

    def __post_init__(self) -> None:
        try:
            Budget.parse(self.save_interval)
        except UserError as error:
            raise UserError(
                f"--save-interval {self.save_interval} is no interval; write for example 10steps, 60s or 20m."
            ) from error
        validate_constraints(self)
