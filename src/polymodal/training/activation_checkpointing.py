"""Activation checkpointing (gradient checkpointing, Chen et al. 2016) of any model, without a line in its layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute the activations of blocks in the backward pass: of what a ModuleList holds, except single layers.

    Models of transformers checkpoint themselves. Blocks with batch norm stay as they are, because a second pass would
    count a batch twice in the running statistics.
    """
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):  # the older name second
        if enable := getattr(model, name, None):
            if model.supports_gradient_checkpointing:
                enable({"use_reentrant": False})
            return
    for child in model.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            has_batch_norm = any(isinstance(part, _BatchNorm) for part in block.modules())
            if any(True for _ in block.children()) and not has_batch_norm:
                block.forward = partial(_checkpointed, block, type(block).forward)
        if not isinstance(child, nn.ModuleList):
            checkpoint_activations(child)


def _checkpointed(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the forward method of a block, in training without keeping its activations."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(block, *args, **kwargs)
    return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)
