"""The interface of a column: fit on training splits, load a value of a row, collate values, save and restore."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError

MAX_ROWS = 200_000  # of a training split, sampled to fit a column


class Column:
    """One kind of value of an example, such as its image; recipes name their columns.

    A recipe declares an unfitted column; `fit` or `restore` returns the fitted one, which loads and collates.
    reads: the modalities that it can be read from; one of them is enough.
    """

    reads: ClassVar[tuple[type, ...]] = ()

    def available(self, corpora: Sequence[Corpus]) -> bool:
        """Return whether any corpus has a modality that this column reads."""
        return any(corpus.has_modality(kind) for corpus in corpora for kind in self.reads)

    def check(self, corpus: Corpus) -> None:
        """Raise UserError, because the corpus lacks what this required column reads."""
        corpus.column_with(self.reads[0])

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> Column:
        """Return the fitted column. corpora: the run's, then those of its stages. fitted: columns declared before."""
        return self

    def load(self, corpus: Corpus, row: int) -> Any:
        """Decode the value of a row. Raises UnreadableExample."""
        raise NotImplementedError

    def __call__(self, values: list[Any], /) -> Any:
        """Collate values into what methods take: a tensor, or a batch class of the modality."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the fitted state as JSON values."""
        return {}

    def save(self, directory: Path) -> None:
        """Write files beside the settings, such as a tokenizer."""

    def restore(self, settings: Mapping[str, Any], directory: Path) -> Column:
        """Return the column fitted with these settings and the files in the directory."""
        return self


@dataclass(frozen=True)
class BaseColumn(Column):
    """A dataclass column: its fields are its settings."""

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def restore(self, settings: Mapping[str, Any], directory: Path) -> BaseColumn:
        return dataclasses.replace(self, **settings)


class PassThroughColumn(BaseColumn):
    """A column whose values are collated as a list, unchanged."""

    def load(self, corpus: Corpus, row: int) -> list[Any]:
        return corpus.value(row, corpus.column_with(self.reads[0]))

    def __call__(self, values: list[Any]) -> Any:
        return values


def reject_unknown_columns(columns: Iterable[str], accepted: Iterable[str]) -> None:
    """Raises UserError for a column that a method does not take."""
    names = list(accepted)
    for name in columns:
        if name not in names:
            raise UserError(f"This method does not take {name}; it takes {', '.join(names)}.")
