"""Exponential moving average (EMA) of a model's weights (Polyak averaging; Tarvainen and Valpola 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """EMA of a model's parameters, which may be sharded. Buffers are not averaged."""

    def __init__(self, model: nn.Module, decay: float):
        """Copy the parameters. decay: weight of the old average per step, in (0, 1)."""
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update: average = decay * average + (1 - decay) * parameter."""
        for name, parameter in self.parameters.items():
            self.averages[name].lerp_(parameter.detach(), 1 - self.decay)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(held)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def apply(self) -> None:
        """Give the model the averaged weights permanently."""
        self._exchange()
