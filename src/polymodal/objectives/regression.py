"""Regression of values that some examples lack."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from polymodal.objectives.reduction import global_mean


def masked_mse(predicted: Float[Tensor, " batch"], truth: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the mean squared error over the values of `truth` that are no NaN, of all processes; 0 without any."""
    missing = truth.isnan()
    error = (predicted - truth.nan_to_num()).masked_fill(missing, 0.0)
    return global_mean(error.square().sum(), (~missing).sum())
