"""The moving average of a model's weights (Polyak averaging; Tarvainen and Valpola 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Averaged copies of a model's parameters; works on sharded parameters too. Buffers stay the model's own."""

    def __init__(self, model: nn.Module, decay: float):
        """decay: the share of the old average that a step keeps, in (0, 1)."""
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the model."""
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
        """The model has the averaged weights inside the block, and its own again after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def apply(self) -> None:
        """Give the model the averaged weights for good."""
        self._exchange()
