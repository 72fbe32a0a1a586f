"""Padding of sequences of different length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mask_of(lengths: Int[Tensor, " batch"], max_length: int) -> Bool[Tensor, "batch length"]:
    """Return True for real positions of padded sequences."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Padded:
    """Batch of sequences of vectors or scalars, padded with zeros on the right.

    values: [batch, length, ...]; values after a sequence's length have no meaning. lengths: of each sequence.
    """

    values: Tensor
    lengths: Int[Tensor, " batch"]

    @property
    def mask(self) -> Bool[Tensor, "batch length"]:
        """True for real values."""
        return mask_of(self.lengths, self.values.shape[1])

    def mean(self) -> Float[Tensor, "batch width"]:
        """Average the real values of each sequence."""
        return (self.values * self.mask[..., None]).sum(1) / self.lengths[:, None]

    def to(self, device: torch.device | str) -> Padded:
        return Padded(self.values.to(device), self.lengths.to(device))

    def __len__(self) -> int:
        return len(self.lengths)


def pad(arrays: Sequence[np.ndarray | Tensor]) -> Padded:
    """Pad arrays [length, ...] of equal type and further dimensions to the longest."""
    tensors = [torch.as_tensor(array) for array in arrays]
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    values = tensors[0].new_zeros(len(tensors), int(lengths.max()), *tensors[0].shape[1:])
    for row, tensor in zip(values, tensors, strict=True):
        row[: len(tensor)] = tensor
    return Padded(values, lengths)
