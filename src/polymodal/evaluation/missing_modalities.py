"""Classification and reconstruction when cells of a table are missing (protocols of TIP, Du et al. 2024, section 4.3).

Cells are masked in training, validation and test rows alike before a linear probe is fitted on frozen features; a
method that classifies by itself was trained already, so that for it only test rows lose cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from polymodal.data.loader import Reader
from polymodal.modalities.table import TableRow
from polymodal.types import Example

MissingProtocol = Literal["random_values", "random_columns", "most_important", "least_important"]
PROTOCOLS: tuple[MissingProtocol, ...] = ("random_values", "random_columns", "most_important", "least_important")
RATES = (0.3, 0.5, 0.7, 0.9)  # of missing cells, beside none


@dataclass(frozen=True)
class Labelled:
    """A split's readable examples that have a label, and their labels."""

    examples: list[Example]
    labels: Int[np.ndarray, " examples"]

    @classmethod
    def of(cls, reader: Reader, split: str, label: str) -> Labelled:
        rows, examples = reader.read_labelled(split, label)
        return cls(examples, np.array([reader.corpus.value(row, label) for row in rows], dtype=np.int64))

    def without(self, gone: Bool[np.ndarray, "examples columns"]) -> Labelled:
        """The same with further cells of the table missing; numbers come first."""
        numeric = len(self.examples[0]["table"].numbers)
        return Labelled(
            [
                example | {"table": _hidden(example["table"], cells[:numeric], cells[numeric:])}
                for example, cells in zip(self.examples, gone, strict=True)
            ],
            self.labels,
        )


def _hidden(row: TableRow, numbers: np.ndarray, categories: np.ndarray) -> TableRow:
    return TableRow(np.where(numbers, np.nan, row.numbers).astype(np.float32), np.where(categories, -1, row.categories))


def missing_cells(
    protocol: MissingProtocol, rate: float, rows: int, important: Sequence[int], rng: np.random.Generator
) -> Bool[np.ndarray, "rows columns"]:
    """Which cells are missing. important: the columns, most important first."""
    columns = len(important)
    gone = np.zeros((rows, columns), dtype=bool)
    count = round(rate * columns)
    if protocol == "random_values":
        gone.reshape(-1)[rng.permutation(gone.size)[: round(rate * gone.size)]] = True
    elif protocol == "random_columns":
        gone[:, rng.permutation(columns)[:count]] = True
    else:
        order = important if protocol == "most_important" else important[::-1]
        gone[:, list(order[:count])] = True
    return gone


def columns_by_importance(train: Labelled) -> list[int]:
    """Columns of the table by how much a random forest uses them, most first."""
    from sklearn.ensemble import RandomForestClassifier

    cells = np.stack([np.concatenate([e["table"].numbers, e["table"].categories]) for e in train.examples])
    forest = RandomForestClassifier(random_state=0).fit(cells, train.labels)
    return np.argsort(-forest.feature_importances_, kind="stable").tolist()


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """The inputs of a method: all columns but the label and captions, which may name it."""
    names = [name for name in examples[0] if name not in ("label", "text")]
    return {name: [example[name] for example in examples] for name in names}
