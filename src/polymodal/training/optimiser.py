"""AdamW with decay groups, warm-up and cosine, on the share of the budget that is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Optimisation:
    """How a recipe is optimised; part of every recipe's hyper-parameters."""

    batch_size: int = 96
    """Examples in a step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; vectors (biases, norms, temperatures) do not decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    warmup: float = 0.05
    """Share of the budget over which the learning rate rises from 0."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    ema: float = 0.0
    """Decay a step of the moving average of the weights that becomes the result; 0 keeps the last weights."""


def adamw(model: nn.Module, options: Optimisation) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; parameters with fewer than two dimensions do not decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, eps=1e-6, fused=True)


def learning_rate(options: Optimisation, fraction: float) -> float:
    """The learning rate after this share of the budget: a straight rise, then half a cosine down to 0."""
    if fraction < options.warmup:
        return options.learning_rate * max(fraction, 1e-3) / options.warmup
    decayed = (fraction - options.warmup) / (1 - options.warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * decayed))
