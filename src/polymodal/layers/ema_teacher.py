"""A teacher whose weights are the moving average of its student's (BYOL, section 3.1; Tarvainen and Valpola 2017)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMATeacher(nn.ModuleList):
    """Frozen copies of some modules. They get no gradient and are in no optimizer; `update` moves them."""

    def __init__(self, students: list[nn.Module], momentum: float):
        """momentum: the share of the old weights that a step keeps, in [0, 1)."""
        super().__init__(copy.deepcopy(student).requires_grad_(False) for student in students)
        self.momentum = momentum
        self.started: Tensor
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def update(self, students: list[nn.Module]) -> None:
        """One step towards the students; the first call copies them, since their weights may have been set since."""
        share = 1 - self.momentum if self.started else 1.0
        for own, student in zip(self.parameters(), nn.ModuleList(students).parameters(), strict=True):
            own.lerp_(student, share)
        self.started.fill_(True)
