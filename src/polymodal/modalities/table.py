"""Tables: rows of numeric and categorical values, any of which may be missing; and whole small tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text
from polymodal.rng import ExampleRNG


class TableRow(NamedTuple):
    """Table row. numbers: NaN where missing. categories: category indices, -1 where missing."""

    numbers: Float[np.ndarray, " numeric"]
    categories: Int[np.ndarray, " categorical"]


@dataclass(frozen=True)
class Table:
    """Column of table rows.

    numeric: name -> unit ("" for none). categorical: name -> possible values.
    """

    numeric: Mapping[str, str]
    categorical: Mapping[str, tuple[str, ...]]

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.struct(dict.fromkeys(self.numeric, pa.float64()) | dict.fromkeys(self.categorical, pa.string()))

    def decode(self, value: Mapping[str, Any]) -> TableRow:
        """Decode a row. Raises UnreadableExample for an unknown category, or an infinite number."""
        numbers = [math.nan if value[name] is None else float(value[name]) for name in self.numeric]
        if any(math.isinf(number) for number in numbers):
            raise UnreadableExample("a number of the table row is infinite")
        indices = []
        for name, levels in self.categorical.items():
            if value[name] is not None and value[name] not in levels:
                raise UnreadableExample(f"'{value[name]}' is not a value of '{name}'")
            indices.append(-1 if value[name] is None else levels.index(value[name]))
        return TableRow(np.array(numbers, np.float32), np.array(indices, np.int64))

    def lines(self, value: TableRow) -> list[str]:
        """Return one line per column, such as 'width: 45 cm'; '?' where a value is missing."""
        numeric_lines = [
            f"{name}: " + ("?" if math.isnan(number) else f"{number:.4g} {unit}".strip())
            for (name, unit), number in zip(self.numeric.items(), value.numbers, strict=True)
        ]
        return numeric_lines + [
            f"{name}: {levels[index] if index >= 0 else '?'}"
            for (name, levels), index in zip(self.categorical.items(), value.categories, strict=True)
        ]

    def describe(self, value: TableRow) -> str:
        return "; ".join(self.lines(value)[:8])

    def plot(self, value: TableRow, axes: Any) -> None:
        write_text(axes, "\n".join(self.lines(value)), lines=12, family="monospace", size=7)


@dataclass(frozen=True)
class TableRows:
    """Batch of rows. A missing number is NaN, a missing category -1, as in TableRow."""

    numbers: Float[Tensor, "batch numeric"]
    categories: Int[Tensor, "batch categorical"]

    def to(self, device: torch.device | str) -> TableRows:
        return TableRows(self.numbers.to(device), self.categories.to(device))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> TableRows:
        """Select rows."""
        return TableRows(self.numbers[rows], self.categories[rows])

    @property
    def missing(self) -> Bool[Tensor, "batch columns"]:
        """True where a value is missing; numeric columns first."""
        return torch.cat([self.numbers.isnan(), self.categories < 0], dim=1)

    def filled(self, modes: Int[Tensor, " categorical"]) -> TableRows:
        """Fill missing cells with the column's mean, which is 0, or mode."""
        categories = torch.where(self.categories < 0, modes, self.categories)
        return TableRows(self.numbers.nan_to_num(0.0), categories)

    def identity(self) -> Int[Tensor, " batch"]:
        """Return a number for each row that is equal for equal rows. Rows with missing numbers equal none."""
        cells = torch.cat([self.numbers.double(), self.categories.double()], dim=1)
        return torch.unique(cells, dim=0, return_inverse=True)[1]

    def mask(self, gone: Bool[Tensor, "batch columns"]) -> TableRows:
        """Mask cells: mark further values as missing."""
        numbers, categories = gone.split([self.numbers.shape[1], self.categories.shape[1]], dim=1)
        return TableRows(
            self.numbers.masked_fill(numbers, math.nan),
            self.categories.masked_fill(categories, -1),
        )


def collate(rows: list[TableRow], mean: Float[np.ndarray, " numeric"], std: Float[np.ndarray, " numeric"]) -> TableRows:
    """Collate rows, standardizing numbers. mean, std: of the training rows."""
    numbers = (np.stack([row.numbers for row in rows]) - mean) / std
    return TableRows(
        torch.from_numpy(numbers.astype(np.float32)), torch.from_numpy(np.stack([row.categories for row in rows]))
    )


def column_statistics(rows: list[TableRow]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each numeric column, ignoring missing values; 0 and 1 without values."""
    numbers = np.stack([row.numbers for row in rows]).astype(np.float64)
    count = (~np.isnan(numbers)).sum(axis=0)
    mean = np.where(count, np.nansum(numbers, axis=0) / np.maximum(count, 1), 0.0)
    variance = np.nansum((numbers - mean) ** 2, axis=0) / np.maximum(count, 1)
    return mean, np.where(variance > 1e-12, np.sqrt(variance), 1.0)


def drop_values(rows: TableRows, rate: float | Float[Tensor, " batch"], example_rng: ExampleRNG) -> TableRows:
    """Drop each value (mark it as missing) with probability `rate`, which may differ between rows."""
    return rows.mask(torch.stack([example_rng.uniform() < rate for _ in range(rows.missing.shape[1])], dim=1))


def sample_columns(rows: TableRows, count: int, example_rng: ExampleRNG) -> Bool[Tensor, "batch columns"]:
    """Sample `count` of each row's columns at random."""
    columns = rows.missing.shape[1]
    rank = torch.stack([example_rng.uniform() for _ in range(columns)], dim=1).argsort(dim=1).argsort(dim=1)
    return rank < count


def replace_cells(rows: TableRows, chosen: Bool[Tensor, "batch columns"], others: TableRows) -> TableRows:
    """Replace the selected cells by those of other rows (SCARF corruption)."""
    numbers, categories = chosen.split([rows.numbers.shape[1], rows.categories.shape[1]], dim=1)
    return TableRows(
        torch.where(numbers, others.numbers, rows.numbers), torch.where(categories, others.categories, rows.categories)
    )


def drop_values_at_random_rate(rows: TableRows, rates: Sequence[float], example_rng: ExampleRNG) -> TableRows:
    """Drop the values of each row with one of the probabilities, each equally often."""
    return drop_values(rows, torch.tensor(rates)[(example_rng.uniform() * len(rates)).long()], example_rng)


class NamedColumn(NamedTuple):
    """Named column of a small table; numbers are strings as in the table."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class DataTable:
    """Column of small tables, such as the data of a chart."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"name": pa.string(), "values": pa.list_(pa.string())}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[NamedColumn]:
        """Decode a table. Raises UnreadableExample when columns differ in length."""
        columns = [NamedColumn(record["name"], tuple(record["values"])) for record in value]
        if len({len(column.values) for column in columns}) > 1:
            raise UnreadableExample("the columns of the table differ in length")
        return columns

    def text(self, value: list[NamedColumn]) -> str:
        """Return one line per row, ' | ' between columns, header first."""
        rows = zip(*(column.values for column in value), strict=True)
        return "\n".join([" | ".join(column.name for column in value), *(" | ".join(row) for row in rows)])

    def describe(self, value: list[NamedColumn]) -> str:
        return f"{len(value[0].values) if value else 0} rows of {', '.join(column.name for column in value)}"

    def plot(self, value: list[NamedColumn], axes: Any) -> None:
        write_text(axes, self.text(value), lines=12, family="monospace", size=7)
