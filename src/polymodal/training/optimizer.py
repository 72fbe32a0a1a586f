"""AdamW with decay groups, and learning rates on the share of the budget that is used."""

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
    """How a recipe is optimised; part of every recipe's hyper-parameters."""

    batch_size: PositiveInt = 96
    """Examples in a step, over all processes."""
    length_bucketing: NonNegativeInt = 0
    """Batches whose examples are sorted by length together, so that less of each is padding; 0 sorts nothing."""
    learning_rate: NonNegativeFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices; vectors (biases, norms, temperatures) do not decay."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    lr_scheduler: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: half a cosine to 0, stable and then a straight line to 0 (warm-up-stable-decay), or none."""
    warmup_ratio: UnitInterval = 0.05
    """Share of the budget over which the learning rate rises from 0."""
    cooldown_ratio: UnitInterval = 0.2
    """Share of the budget at its end over which the wsd schedule falls."""
    layer_decay: PositiveUnitInterval = 1.0
    """Factor of the learning rate from each transformer block to the one before it (BEiT); 1 is none."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    ema_decay: DecayRate = 0.0
    """Decay a step of the moving average of the weights that becomes the result; 0 keeps the last weights."""
    freeze: tuple[str, ...] = ()
    """Towers that keep their weights, such as text (LiT, Zhai et al. 2022), or shell patterns of parameter names."""
    lora_rank: NonNegativeInt = 0
    """Rank of low-rank updates that are trained in place of the linear layers' own weights (LoRA); 0 trains these."""
    lora_target_modules: tuple[str, ...] = ("*",)
    """Shell patterns of the names of the linear layers that get a low-rank update."""

    length_modality: ClassVar[type] = Text
    """The modality whose lengths `length_bucketing` sorts by."""

    def stages(self) -> tuple[Stage, ...]:
        """What is trained, one after the other; a recipe with more than one stage says so here."""
        return (Stage("training"),)

    def gradient_transform(self) -> GradientTransform | None:
        """What makes one gradient of those of each loss; None adds them up. One is made for each run."""
        return None

    def cacheable_encoders(self) -> tuple[str, ...]:
        """The encoders, by their name in the method, that see an example as it is, without a random change.

        Those of them that are frozen are evaluated once an input (`training/feature_cache.py`).
        """
        return ()


def adamw(
    model: nn.Module, options: OptimizerConfig, lr_scales: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; parameters with fewer than two dimensions do not decay.

    Each group has an `lr_scale`, the factor of its learning rate by layer-wise decay and by `lr_scales`, as in
    `types.Stage.lr_scales`.
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
    """Scale the gradients so that the norm of all of them is at most `max_norm` (0: leave them); returns that norm."""
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
    """For each parameter, decay to the power of the number of layers above it in its tower (BEiT, appendix).

    A tower is a direct child of the model that contains `blocks` (`layers`, `layer` or `h` in pretrained models); what
    it holds before them counts as the layer below them, and what comes after as the layer above, which has scale 1, as
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
    """The learning rate after this share of the budget, from 0 to 1."""
    if fraction < options.warmup_ratio:
        return options.learning_rate * max(fraction, 1e-3) / options.warmup_ratio
    if options.lr_scheduler == "constant":
        return options.learning_rate
    if options.lr_scheduler == "wsd":
        return options.learning_rate * min(1.0, (1 - fraction) / options.cooldown_ratio)
    decayed = (fraction - options.warmup_ratio) / (1 - options.warmup_ratio)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * decayed))
