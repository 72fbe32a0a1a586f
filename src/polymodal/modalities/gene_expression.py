"""Gene expression profiles of single cells: float32, in the order of a fixed list of genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import from_npy


@dataclass(frozen=True)
class Cell:
    """Column of expression profiles in NumPy's .npy format. genes: their symbols, in order."""

    genes: tuple[str, ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: bytes) -> Float[np.ndarray, " genes"]:
        """Decode a profile. Raises UnreadableExample for another number of genes."""
        expression = from_npy(value, 1).astype(np.float32)
        if len(expression) != len(self.genes):
            raise UnreadableExample(f"the profile has {len(expression)} genes, not {len(self.genes)}")
        return expression

    def describe(self, value: np.ndarray) -> str:
        strongest = ", ".join(self.genes[gene] for gene in np.argsort(-value)[:5])
        return f"{np.count_nonzero(value > 0)} of {len(value)} genes; strongest: {strongest}"

    def plot(self, value: np.ndarray, axes: Any) -> None:
        """Plot the twelve most expressed genes."""
        strongest = np.argsort(-value)[:12][::-1]
        axes.barh([self.genes[gene] for gene in strongest], value[strongest], color="#4c956c")
        axes.tick_params(labelsize=6)


def binned(expression: Float[np.ndarray, " genes"], bins: int) -> Int[np.ndarray, " genes"]:
    """Return 0 for silent genes, else 1 to `bins` by quantile among the cell's expressed genes (scGPT, section 4.1).

    Quantiles per cell remove the effect of sequencing depth.
    """
    levels = np.zeros(len(expression), np.int64)
    positive = expression > 0
    if positive.any():
        edges = np.quantile(expression[positive], np.linspace(0, 1, bins + 1)[1:-1])
        levels[positive] = 1 + np.searchsorted(edges, expression[positive], side="right")
    return levels
