"""FLOPs of a training step, counted on a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from polymodal.training.grad_cache import weighted_sum
from polymodal.types import Batch


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
