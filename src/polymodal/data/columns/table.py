"""Rows of a table."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, BaseColumn, Column
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Table
from polymodal.modalities.table import TableRow, TableRows, collate, column_statistics, replace_cells, sample_columns
from polymodal.rng import ExampleRNG

QUANTILES = 257  # stored for each numeric column


@dataclass(frozen=True)
class TableColumn(BaseColumn):
    """Rows of a table; numeric columns have mean 0 and standard deviation 1 over the training rows.

    numeric: names of the numeric columns. categorical: name -> its values. quantiles: for each numeric column,
    standardized values of the training rows at equally spaced ranks. shares: for each categorical column, the frequency
    of each value in the training rows.
    """

    reads = (Table,)
    numeric: Sequence[str] = ()
    categorical: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    quantiles: Sequence[Sequence[float]] = ()
    shares: Sequence[Sequence[float]] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> TableColumn:
        """Raises UserError when no row of the training split can be read."""
        corpus = corpora[0]
        column = corpus.column_with(Table)
        table = corpus.columns[column]
        assert isinstance(table, Table)
        rows = []
        for raw in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
            with contextlib.suppress(UnreadableExample):
                rows.append(table.decode(raw))
        if not rows:
            raise UserError(f"The corpus '{corpus.name}' has no readable table row in its training split.")
        mean, std = column_statistics(rows)
        numbers = ((np.stack([row.numbers for row in rows]) - mean) / std).T
        present = [values[~np.isnan(values)] for values in numbers]
        ranks = (np.arange(QUANTILES) + 0.5) / QUANTILES
        places = np.stack([row.categories for row in rows]).T
        counts = [
            np.bincount(p[p >= 0], minlength=len(v)) for p, v in zip(places, table.categorical.values(), strict=True)
        ]
        return TableColumn(
            list(table.numeric),
            {name: list(values) for name, values in table.categorical.items()},
            mean.tolist(),
            std.tolist(),
            [np.quantile(v, ranks, method="nearest").tolist() if len(v) else [0.0] * QUANTILES for v in present],
            [(count / max(count.sum(), 1)).tolist() for count in counts],
        )

    @property
    def levels(self) -> list[int]:
        """Return the number of values of each categorical column."""
        return [len(values) for values in self.categorical.values()]

    @property
    def modes(self) -> list[int]:
        """Return the most frequent value of each categorical column."""
        return [int(np.argmax(shares)) for shares in self.shares]

    def load(self, corpus: Corpus, row: int) -> TableRow:
        return corpus.value(row, corpus.column_with(Table))

    def __call__(self, rows: list[TableRow]) -> TableRows:
        return collate(rows, np.array(self.mean), np.array(self.std))

    def corrupted(self, rows: TableRows, rate: float, example_rng: ExampleRNG) -> TableRows:
        """Resample `rate` of each row's cells, rounded down, from their columns (SCARF, Bahri et al. 2022)."""
        resampled = sample_columns(rows, int(rate * rows.missing.shape[1]), example_rng)
        return replace_cells(rows, resampled, self.random_rows(example_rng))

    def random_rows(self, example_rng: ExampleRNG) -> TableRows:
        """Sample a row for each example, every cell from its column's marginal distribution over the training rows."""
        batch = len(example_rng.seeds)
        numbers = torch.empty(batch, len(self.numeric))
        for column, values in enumerate(self.quantiles):
            numbers[:, column] = torch.tensor(values)[(example_rng.uniform() * len(values)).long()]
        places = torch.empty(batch, len(self.categorical), dtype=torch.long)
        for column, shares in enumerate(self.shares):
            ends = torch.tensor(shares).cumsum(0)[:-1]
            places[:, column] = torch.searchsorted(ends, example_rng.uniform(), right=True)
        return TableRows(numbers, places)
