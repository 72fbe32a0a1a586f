"""Metrics of the validation split during training: what the trainer asks of them, and what a record keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn


class Measured(Protocol):
    """A metric of the validation split, such as an `evaluation.Score`."""

    @property
    def value(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def headline(self) -> int | None: ...


VALIDATIONS = 8  # of a training, evenly over its budget
Validate = Callable[[nn.Module, Any], Mapping[str, Measured]]  # method, processor -> metrics by name


def meaning(metric: Measured) -> dict[str, Any]:
    """What a record says of a metric beside its values."""
    return {name: getattr(metric, name) for name in ("unit", "higher_is_better", "headline")}
