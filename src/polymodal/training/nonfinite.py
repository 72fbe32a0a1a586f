"""Steps whose losses or gradient are not finite: which ones, and the error after too many of them in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from polymodal.errors import UserError

KEYS_SHOWN = 5  # number of example keys in the error


class NonFiniteTraining(UserError):
    """Training diverged: losses, gradients or weights are not finite."""


def nonfinite_names(losses: Mapping[str, Tensor], gradient_norm: float) -> list[str]:
    """Return the names of the losses that are not finite, and 'gradient' if its norm is not."""
    names = [name for name, loss in losses.items() if not math.isfinite(loss)]
    return names if math.isfinite(gradient_norm) else [*names, "gradient"]


def nonfinite_error(
    name: str, losses: Mapping[str, Tensor], step: int, consecutive: int, keys: Sequence[str]
) -> NonFiniteTraining:
    """Return the error that names the loss and the examples. consecutive: steps in a row that were not finite."""
    what = "The gradient is not finite" if name == "gradient" else f"The loss '{name}' is {float(losses[name])}"
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    again = f" after {consecutive - 1} such steps in a row" if consecutive > 1 else ""
    return NonFiniteTraining(
        f"{what} at step {step}{again}, with the examples {', '.join(keys[:KEYS_SHOWN])}{more}; use a "
        "smaller --learning-rate or a --max-grad-norm, or look at these examples."
    )


def nonfinite_weights(name: str, step: int, directory: Path | None) -> NonFiniteTraining:
    """Return the error for weights that an update made infinite or NaN. name: of one of them."""
    kept = f"; the checkpoints of {directory} before it are kept" if directory is not None else ""
    return NonFiniteTraining(
        f"The weights '{name}' are not finite after step {step}{kept}: train again, into another folder, with a "
        "smaller --learning-rate or a --max-grad-norm."
    )
