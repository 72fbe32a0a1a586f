"""AdamW with parameter groups, and lr schedulers over the used fraction of the budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polymodal.constraints import (
    DecayRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
)
from polymodal.modalities import Text
from polymodal.training.grad_cache import Forward
from polymodal.training.parallel import World, full_tensor
from polymodal.types import Batch, Stage


class GradientTransform(Protocol):
    """From the gradients of each loss by groups of examples to the gradient of a step."""

    group_size: int
    """Examples of a group, which divide the batch of a process; 0 takes the micro-batches."""

    def backward(
        self,
        method: Any,
        batches: list[Batch],
        weights: Mapping[str, float],
        forward: Forward,
        fraction: float,
        world: World,
        name: str,
    ) -> dict[str, Tensor]:
        """Set the gradients of all trainable parameters; returns the losses, detached.

        fraction: of the stage that is done. name: of the losses in the method.
        """
        ...

    def report(self) -> dict[str, Any]:
        """What the run's history notes of the steps since the last report."""
        ...


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer hyper-parameters of every recipe."""

    batch_size: PositiveInt = 96
    """Batch size in examples, over all processes."""
    length_bucketing: NonNegativeInt = 0
    """Length bucketing: number of batches within which examples are sorted by length to reduce padding; 0: off."""
    learning_rate: NonNegativeFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices; vectors (biases, norms, logit scales) do not decay."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.98)
    """AdamW beta1 and beta2."""
    lr_scheduler: Literal["cosine", "wsd", "constant"] = "cosine"
    """Learning rate (lr) scheduler after warmup: cosine to 0, wsd (warmup-stable-decay, linear to 0), or constant."""
    warmup_ratio: UnitInterval = 0.05
    """Fraction of the budget for linear warmup of the learning rate from 0."""
    cooldown_ratio: UnitInterval = 0.2
    """Fraction of the budget at its end for the linear decay of the wsd scheduler."""
    layer_decay: PositiveUnitInterval = 1.0
    """Layer-wise learning rate decay: factor from each transformer block to the one below (BEiT); 1: off."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradient clipping: maximum global gradient norm; 0: off."""
    ema_decay: DecayRate = 0.0
    """Decay per step of the exponential moving average (EMA) of weights, which becomes the result; 0: off."""
    freeze: tuple[str, ...] = ()
    """Frozen encoders, such as text (LiT, Zhai et al. 2022), or shell patterns of parameter names."""
    lora_rank: NonNegativeInt = 0
    """LoRA rank: train low-rank updates instead of the linear layers' own weights; 0: off."""
    lora_target_modules: tuple[str, ...] = ("*",)
    """Shell patterns of the names of linear layers that get LoRA."""

    length_modality: ClassVar[type] = Text
    """Modality by whose length `length_bucketing` sorts."""

    def stages(self) -> tuple[Stage, ...]:
        """Return the training stages in order; a recipe with more than one stage overrides it."""
        return (Stage("training"),)

    def gradient_transform(self) -> GradientTransform | None:
        """What makes one gradient of those of each loss; None adds them up. One is made for each run."""
        return None

    def cacheable_encoders(self) -> tuple[str, ...]:
        """Return the names of the encoders that see unaugmented inputs.

        If frozen, their features are cached (`training/feature_cache.py`).
        """
        return ()


def adamw(
    model: nn.Module, options: OptimizerConfig, lr_scales: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; parameters with fewer than two dimensions do not decay.

    Each group has an `lr_scale`: layer-wise decay times the scale of `lr_scales`, as in `types.Stage.lr_scales`.
    """
    scales = layer_scales(model, options.layer_decay)
    for name in scales:
        fitting = (factor for pattern, factor in (lr_scales or {}).items() if fnmatchcase(name, pattern))
        scales[name] *= next(fitting, 1.0)
    members: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # the fused step takes no group of both sharded and whole parameters
            kind = (parameter.ndim >= 2, scales[name], isinstance(parameter, DTensor))
            members.setdefault(kind, []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": options.weight_decay if matrix else 0.0, "lr_scale": scale}
        for (matrix, scale, _), parameters in sorted(members.items(), key=lambda item: item[0], reverse=True)
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, eps=1e-6, fused=True)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Clip gradients to a global norm of at most `max_norm` (0: do not clip); return the norm before clipping."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    whole_ones = [parameter for parameter in with_gradient if not isinstance(parameter, DTensor)]
    sharded = [parameter for parameter in with_gradient if isinstance(parameter, DTensor)]
    kinds = [kind for kind in (whole_ones, sharded) if kind]
    if not kinds:
        return 0.0
    norms = [full_tensor(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if max_norm:
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return float(norm)


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return, per parameter, decay ** (number of layers above it in its tower) (layer-wise lr decay, BEiT, appendix).

    A tower is a direct child of the model that contains `blocks` (`layers`, `layer` or `h` in pretrained models);
    parameters before the blocks count as the layer below them, later ones as the layer above, which has scale 1, like
    everything outside towers.
    """
    names = [name for name, _ in model.named_parameters()]
    block_of = {name: match for name in names if (match := re.search(r"\b(?:blocks|layers?|h)\.(\d+)\.", name))}
    depth: dict[str, int] = {}
    for name, match in block_of.items():
        tower = name.partition(".")[0]
        depth[tower] = max(depth.get(tower, 0), int(match[1]) + 1)
    scales, passed = {}, set()
    for name in names:
        tower = name.partition(".")[0]
        if tower not in depth:
            above = 0
        elif name in block_of:
            passed.add(tower)
            above = depth[tower] - int(block_of[name][1])
        else:
            above = 0 if tower in passed else depth[tower] + 1
        scales[name] = decay**above
    return scales


def learning_rate(options: OptimizerConfig, fraction: float) -> float:
    """Return the learning rate after a fraction (0 to 1) of the budget."""
    if fraction < options.warmup_ratio:
        return options.learning_rate * max(fraction, 1e-3) / options.warmup_ratio
    if options.lr_scheduler == "constant":
        return options.learning_rate
    if options.lr_scheduler == "wsd":
        return options.learning_rate * min(1.0, (1 - fraction) / options.cooldown_ratio)
    decayed = (fraction - options.warmup_ratio) / (1 - options.warmup_ratio)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * decayed))
