"""AdamW with parameter groups, and lr schedulers over the used fraction of the budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from polymodal.constraints import (
    DecayRate,
    NonNegativeFloat,
    PositiveFloat,
    PositiveUnitInterval,
    UnitInterval,
)
from polymodal.training.parallel import full_tensor


@dataclass(frozen=True)
class OptimizerConfig:
    """Hyper-parameters of AdamW, its learning-rate schedule and the averaging of weights: `Recipe.optimizer`."""

    learning_rate: NonNegativeFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices; vectors (biases, norms, logit scales) do not decay."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.98)
    """AdamW beta1 and beta2."""
    eps: PositiveFloat = 1e-6
    """AdamW epsilon, added to the root of the second moment."""
    lr_scheduler: Literal["cosine", "linear", "inverse_sqrt", "inverse_sqrt_cooldown", "wsd", "constant"] = "cosine"
    """Learning rate (lr) scheduler after warmup: cosine or linear to the minimum, inverse_sqrt (peak times the root of
    warmup over used budget, Vaswani et al. 2017), inverse_sqrt_cooldown (the same times a linear decay to the minimum,
    Zhai et al. 2022), wsd (warmup-stable-decay, linear to the minimum), or constant."""
    min_lr_ratio: UnitInterval = 0.0
    """Minimum learning rate at the end of the cosine, linear and wsd schedulers, relative to the peak."""
    warmup_ratio: UnitInterval = 0.05
    """Fraction of the budget for linear warmup of the learning rate from 0."""
    cooldown_ratio: UnitInterval = 0.2
    """Fraction of the budget at its end for the linear decay of the schedulers wsd and inverse_sqrt_cooldown."""
    layer_decay: PositiveUnitInterval = 1.0
    """Layer-wise learning rate decay: factor from each transformer block to the one below (BEiT); 1: off."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradient clipping: maximum global gradient norm; 0: off."""
    ema_decay: DecayRate = 0.0
    """Decay per step of the exponential moving average (EMA) of weights, which becomes the result; 0: off."""


# `torch.optim.Adam` with its defaults: no weight decay, no schedule, no clipping.
ADAM = OptimizerConfig(1e-3, 0.0, (0.9, 0.999), 1e-8, "constant", warmup_ratio=0.0, max_grad_norm=0.0)


def adamw(model: nn.Module, config: OptimizerConfig, lr_scales: Mapping[str, float] | None = None) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; parameters with fewer than two dimensions do not decay.

    Each group has an `lr_scale`: layer-wise decay times the scale of `lr_scales`, as in `types.Stage.lr_scales`.
    """
    scales = layer_scales(model, config.layer_decay)
    for name in scales:
        fitting = (factor for pattern, factor in (lr_scales or {}).items() if fnmatchcase(name, pattern))
        scales[name] *= next(fitting, 1.0)
    members: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # the fused step takes no group of both sharded and whole parameters
            kind = (parameter.ndim >= 2, scales[name], isinstance(parameter, DTensor))
            members.setdefault(kind, []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": config.weight_decay if matrix else 0.0, "lr_scale": scale}
        for (matrix, scale, _), parameters in sorted(members.items(), key=lambda item: item[0], reverse=True)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


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


def learning_rate(config: OptimizerConfig, fraction: float) -> float:
    """Return the learning rate after a fraction (0 to 1) of the budget."""
    peak, lowest, warmup = config.learning_rate, config.min_lr_ratio, config.warmup_ratio
    if fraction < warmup:
        return peak * max(fraction, min(1e-3, warmup / 50)) / warmup
    done = (fraction - warmup) / max(1 - warmup, 1e-9)  # of what follows the warmup
    match config.lr_scheduler:
        case "constant":
            return peak
        case "inverse_sqrt":
            return peak * math.sqrt(max(warmup, 1e-3) / max(fraction, warmup, 1e-3))
        case "inverse_sqrt_cooldown":
            peak *= math.sqrt(max(warmup, 1e-3) / max(fraction, warmup, 1e-3))
            decay = min(1.0, (1 - fraction) / max(config.cooldown_ratio, 1e-9))
        case "wsd":
            decay = min(1.0, (1 - fraction) / max(config.cooldown_ratio, 1e-9))
        case "linear":
            decay = 1 - done
        case "cosine":
            decay = 0.5 * (1 + math.cos(math.pi * done))
    return peak * (lowest + (1 - lowest) * decay)
