"""Prediction head for masked cells of a table (TIP, Du et al. 2024, section 3.2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class MaskedTableHead(nn.Module):
    """One linear layer for all numeric columns, and one over the values of all categorical columns together.

    offsets: where the values of each categorical column begin among those of all.
    """

    def __init__(self, width: int, levels: Sequence[int]):
        """Build the head. levels: number of values of each categorical column."""
        super().__init__()
        self.levels = list(levels)
        self.offsets = [0, *itertools.accumulate(levels)][: len(levels)]
        self.numeric = nn.Linear(width, 1)
        self.categorical = nn.Linear(width, max(sum(levels), 1))  # a table may have numbers only

    def forward(
        self, cells: Float[Tensor, "batch cells width"]
    ) -> tuple[Float[Tensor, "batch numeric"], Float[Tensor, "batch categorical values"]]:
        """Return numbers, and logits over all values. cells: numeric columns first."""
        numbers, categories = cells.split([cells.shape[1] - len(self.levels), len(self.levels)], dim=1)
        return self.numeric(numbers).squeeze(-1), self.categorical(categories)

    def impute(
        self, cells: Float[Tensor, "batch cells width"]
    ) -> tuple[Float[Tensor, "batch numeric"], list[Float[Tensor, "batch levels"]]]:
        """Return numbers, and logits of each categorical column's own values. cells: numeric columns first."""
        numbers, logits = self(cells)
        return numbers, self.by_column(logits)

    def by_column(self, logits: Float[Tensor, "batch categorical values"]) -> list[Float[Tensor, "batch levels"]]:
        """Restrict the logits of each categorical column to its own values."""
        starts = zip(self.offsets, self.levels, strict=True)
        return [logits[:, column, start : start + count] for column, (start, count) in enumerate(starts)]
