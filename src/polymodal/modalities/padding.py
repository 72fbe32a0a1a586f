"""Values of different length in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mask_of(lengths: Int[Tensor, " batch"], max_length: int) -> Bool[Tensor, "batch length"]:
    """True where a place of a sequence, of `longest` places, is real."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Padded:
    """A batch of sequences of vectors or numbers, padded with zeros on the right.

    values: [batch, length, ...]; what stands after a sequence's length has no meaning. lengths: of each sequence.
    """

    values: Tensor
    lengths: Int[Tensor, " batch"]

    @property
    def mask(self) -> Bool[Tensor, "batch length"]:
        """True where a value is real."""
        return mask_of(self.lengths, self.values.shape[1])

    def mean(self) -> Float[Tensor, "batch width"]:
        """Of the real values of each sequence of vectors."""
        return (self.values * self.mask[..., None]).sum(1) / self.lengths[:, None]

    def to(self, device: torch.device | str) -> Padded:
        return Padded(self.values.to(device), self.lengths.to(device))

    def __len__(self) -> int:
        return len(self.lengths)


def pad(arrays: Sequence[np.ndarray | Tensor]) -> Padded:
    """Arrays [length, ...] of equal type and equal further dimensions to one batch, as long as the longest."""
    tensors = [torch.as_tensor(array) for array in arrays]
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    values = tensors[0].new_zeros(len(tensors), int(lengths.max()), *tensors[0].shape[1:])
    for row, tensor in zip(values, tensors, strict=True):
        row[: len(tensor)] = tensor
    return Padded(values, lengths)
