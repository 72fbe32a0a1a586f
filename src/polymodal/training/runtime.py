"""Runtime configuration: how a run is executed. It changes results by rounding at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polymodal.constraints import NonNegativeInt, PositiveInt, validate_constraints
from polymodal.errors import UserError
from polymodal.types import Budget


@dataclass(frozen=True)
class RuntimeConfig:
    """Device, parallelism, memory and checkpoints of a run."""

    device: str | None = None
    """Device, such as cpu or cuda:1; by default a GPU when there is one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Parallelism of several processes (torchrun): data parallel (DDP), or fully sharded (FSDP2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast dtype; parameters and losses stay float32."""
    micro_batch: NonNegativeInt = 0
    """Micro-batch size per process, to save memory; 0: the whole batch. Contrastive methods keep the whole batch as
    negatives (gradient caching, GradCache); others use gradient accumulation."""
    activation_checkpointing: bool = False
    """Activation checkpointing (gradient checkpointing): recompute activations of transformer blocks in the backward
    pass, to save memory."""
    compile: bool = False
    """Compile transformer blocks with torch.compile; worthwhile for long runs on a GPU."""
    num_threads: NonNegativeInt | None = None
    """Data loading threads; by default 4 with a GPU, and 0 on a CPU, where they would compete with training."""
    num_workers: NonNegativeInt = 0
    """Data loading processes instead of threads, for preprocessing that is limited by Python's GIL (decoding is
    not)."""
    cache_features: bool = True
    """Cache features of frozen encoders on disk, where the recipe does not augment their inputs."""
    save_interval: str = "60s"
    """Interval between checkpoints, such as 10steps, 5000examples, 60s or 20m."""
    keep_checkpoints: PositiveInt = 1
    """Number of newest checkpoints to keep."""
    max_nonfinite_steps: NonNegativeInt = 5
    """Maximum number of consecutive steps with non-finite loss or gradient, which are skipped, before the run stops."""
    logger: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Experiment tracker; wandb and trackio must be installed."""

    def __post_init__(self) -> None:
        try:
            Budget.parse(self.save_interval)
        except UserError as error:
            raise UserError(
                f"--save-interval {self.save_interval} is no interval; write for example 10steps, 60s or 20m."
            ) from error
        validate_constraints(self)
