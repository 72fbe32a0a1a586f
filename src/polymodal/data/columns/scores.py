"""Mean opinion scores of an example: numeric columns of a table, on a scale of 0 to 1 where more is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.errors import MissingModality, UserError, unknown
from polymodal.modalities import Table


@dataclass(frozen=True)
class ScoresColumn(BaseColumn):
    """Mean opinion scores (MOS), NaN where an example has none.

    names: of numeric columns; by default all that are not constant. lower_is_better: those that are turned round.
    num_labels: training rows with a known score, at most so many for each score, evenly spaced; 0: all. low, high: of
    the training split, which become 0 and 1.
    """

    reads = (Table,)
    names: Sequence[str] = ()
    lower_is_better: Sequence[str] = ()
    num_labels: int = 0
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def check(self, corpus: Corpus) -> None:
        message = f"The corpus '{corpus.name}' has no column of scores, such as 'mos', with a number for each image"
        raise MissingModality(f"{message}.{corpus.hint}", "table")

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> ScoresColumn:
        """Raises UserError for a name of no numeric column, for one in `lower_is_better` that is not learned, and where
        no score differs between training images."""
        corpus = corpora[0]
        table = corpus.columns[corpus.column_with(Table)]
        assert isinstance(table, Table)
        for name in (*self.names, *self.lower_is_better):
            if name not in table.numeric:
                raise unknown("score", name, table.numeric)
        every = replace(self, names=list(self.names or table.numeric))
        values = every._raw(corpus, corpus.rows("train"))
        limits = {}
        for name, column in zip(every.names, values.T, strict=True):
            there = column[~np.isnan(column)]
            if len(there) and there.min() < there.max():
                limits[name] = float(there.min()), float(there.max())
            elif self.names:
                raise UserError(f"All training images have the same '{name}', or none; no score is learned from it.")
        if not limits:
            self.check(corpus)
        if unlearned := [name for name in self.lower_is_better if name not in limits]:
            raise UserError(
                f"--lower-is-better names {', '.join(unlearned)}, which is not among the scores that are learned: "
                f"{', '.join(limits)}; name it in --score-columns, too, or leave it out."
            )
        low, high = zip(*limits.values(), strict=True)
        return replace(self, names=[*limits], lower_is_better=[*self.lower_is_better], low=[*low], high=[*high])

    def load(self, corpus: Corpus, row: int) -> Float[np.ndarray, " scores"]:
        return self.normalized(self._raw(corpus, np.array([row])))[0]

    def normalized(self, values: Float[np.ndarray, "rows scores"]) -> Float[np.ndarray, "rows scores"]:
        """Return scores between 0 and 1, more is better; those beyond the training split's are outside."""
        low, high = np.array(self.low), np.array(self.high)
        scaled = (values - low) / (high - low)
        turned = np.array([name in self.lower_is_better for name in self.names])
        return np.where(turned, 1 - scaled, scaled).astype(np.float32)

    def of_split(self, corpus: Corpus, split: str) -> tuple[np.ndarray, Float[np.ndarray, "rows scores"]]:
        """Return the rows of a split and their scores."""
        rows = corpus.rows(split)
        return rows, self.normalized(self._raw(corpus, rows))

    def labelled_rows(self, corpus: Corpus) -> dict[str, np.ndarray]:
        """Return the training rows whose score may be learned from, by score.

        A row that is selected for one score counts for all scores that it has.
        """
        rows, values = self.of_split(corpus, "train")
        has_score = ~np.isnan(values)
        selected, is_full = np.full(len(rows), not self.num_labels), np.zeros(len(self.names), bool)
        for place in np.argsort(has_score.sum(0), kind="stable") if self.num_labels else ():  # rare scores first
            free = np.flatnonzero(has_score[:, place] & ~selected & ~has_score[:, is_full].any(1))
            count = min(self.num_labels - int((has_score[:, place] & selected).sum()), len(free))
            selected[free[np.linspace(0, len(free) - 1, max(count, 0)).round().astype(int)]] = True
            is_full[place] = True
        return {name: rows[has_score[:, place] & selected] for place, name in enumerate(self.names)}

    def rows_with(self, corpus: Corpus, split: str, names: Sequence[str]) -> np.ndarray:
        """Return the rows of a split with one of these scores; all without names. Raises UserError for unknown ones."""
        for name in names:
            if name not in self.names:
                raise unknown("score", name, self.names)
        rows, values = self.of_split(corpus, split)
        places = [place for place, name in enumerate(self.names) if name in names]
        return rows[~np.isnan(values[:, places]).all(1)] if names else rows

    def __call__(self, values: list[Float[np.ndarray, " scores"]]) -> Float[Tensor, "batch scores"]:
        return torch.from_numpy(np.stack(values))

    def _raw(self, corpus: Corpus, rows: np.ndarray) -> Float[np.ndarray, "rows scores"]:
        if not corpus.has_modality(Table):
            return np.full((len(rows), len(self.names)), math.nan)
        stored = corpus.raw_values(rows, corpus.column_with(Table))
        cells = [[(value or {}).get(name) for name in self.names] for value in stored]
        return np.array([[math.nan if cell is None else float(cell) for cell in row] for row in cells])
