"""Time series and spectra: float32, channels x length, at a fixed spacing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.modalities.modality import from_npy
from polymodal.rng import ExampleRNG


@dataclass(frozen=True)
class Series:
    """Column of time series or spectra, of any length and number of channels, in NumPy's .npy format."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: bytes) -> Float[np.ndarray, "channels length"]:
        """Decode a series. Raises UnreadableExample for anything but a two-dimensional array."""
        return from_npy(value, 2).astype(np.float32)

    def describe(self, value: np.ndarray) -> str:
        channels, length = value.shape
        return f"{length} values of {channels} channel{'s' if channels > 1 else ''}"

    def plot(self, value: np.ndarray, axes: Any) -> None:
        axes.plot(value.T, linewidth=0.8)
        axes.tick_params(labelsize=6)


def standardize(series: Float[np.ndarray, "channels length"]) -> Float[np.ndarray, "channels length"]:
    """Standardize each channel to mean 0 and standard deviation 1; a constant channel to 0."""
    centered = series - series.mean(axis=1, keepdims=True)
    return (centered / np.maximum(centered.std(axis=1, keepdims=True), 1e-8)).astype(np.float32)


def augment_series(
    series: Float[Tensor, "batch channels length"], example_rng: ExampleRNG, noise: float = 0.03, scale: float = 0.1
) -> Float[Tensor, "batch channels length"]:
    """Add Gaussian noise to every value and scale each series at random. noise, scale: standard deviations."""
    factors = np.stack([1 + scale * generator.standard_normal() for generator in example_rng.generators])
    jitter = np.stack([generator.standard_normal(series.shape[1:]) for generator in example_rng.generators])
    return series * torch.from_numpy(factors).to(series)[:, None, None] + noise * torch.from_numpy(jitter).to(series)
