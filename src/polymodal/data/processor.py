"""One processor for every recipe, made of the columns that the recipe declares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column, reject_unknown_columns
from polymodal.errors import MissingModality
from polymodal.modalities import Expressions, Preferences, Questions, Regions, Text
from polymodal.modalities.text import Tokenizer
from polymodal.types import Batch, Example

SETTINGS = "processor.json"
ANNOTATIONS = (Text, Questions, Regions, Expressions, Preferences)  # what an evaluation may do without


@dataclass(frozen=True)
class Sparse:
    """A column that some rows lack: it is read from the others."""

    column: Column


@dataclass(frozen=True)
class Optional:
    """A column that is left out of the processor when no corpus has its modality."""

    column: Column | Sparse


@dataclass(frozen=True)
class SharedColumn:
    """A name in batches for what another column collates, such as questions by the column of texts.

    collate: the column's method that does it.
    """

    column: str
    collate: str = "__call__"


@dataclass(frozen=True)
class BatchFormat:
    """What makes batches of several columns together, in place of each column by itself.

    make: from the fitted columns, what takes values by name and gives a batch.
    """

    make: Callable[[Mapping[str, Column]], Callable[..., Batch]]


Declared = Mapping[str, Column | Sparse | Optional | SharedColumn | BatchFormat]


class SparseExample(dict[str, Any]):
    """An example without the sparse columns that its row lacks. Raises MissingModality where one of these is read."""

    def __missing__(self, name: str) -> Any:
        raise MissingModality(
            f"This method reads the column '{name}' of every example, and one has no value; leave such examples out.",
            name,
        )


class Processor:
    """Read rows by named columns, and collate their values.

    A column or format is an attribute by its name; a declared column that was left out is None.
    """

    def __init__(self, declared: Declared, columns: Mapping[str, Column]):
        """columns: the declared columns, fitted, without those that are left out."""
        self.columns = dict(columns)
        self.sparse = {name for name, one in declared.items() if _is_sparse(one)}
        self.shared = {name: one for name, one in declared.items() if isinstance(one, SharedColumn)}
        self.formats = {name: one.make(columns) for name, one in declared.items() if isinstance(one, BatchFormat)}
        self.left_out = {name for name, one in declared.items() if isinstance(one, Optional)} - {*columns}
        self.unread: set[str] = set()

    @classmethod
    def fit(cls, corpora: Sequence[Corpus], declared: Declared) -> Processor:
        """Fit the columns on training splits. corpora: the run's, then others that its stages learn from.

        Raises UserError when no corpus has the modality of a required column.
        """
        plain = {name: _plain(one) for name, one in declared.items() if _is_column(one)}
        for name, column in list(plain.items()):
            if column.available(corpora):
                continue
            if isinstance(declared[name], Optional):
                del plain[name]
            elif not isinstance(declared[name], Sparse):
                column.check(corpora[0])
        fitted: dict[str, Column] = {}
        for name, column in plain.items():
            fitted[name] = column.fit(corpora, fitted)
        return cls(declared, fitted)

    @classmethod
    def load(cls, directory: Path, declared: Declared) -> Processor:
        """The processor that `save` wrote, of a recipe that declares the same columns."""
        settings = json.loads((directory / SETTINGS).read_text())
        columns = {
            name: _plain(one).restore(settings[name], directory)
            for name, one in declared.items()
            if name in settings and _is_column(one)
        }
        return cls(declared, columns)

    def save(self, directory: Path) -> None:
        for column in self.columns.values():
            column.save(directory)
        settings = {name: column.settings() for name, column in self.columns.items()}
        (directory / SETTINGS).write_text(json.dumps(settings, indent=2))

    def for_evaluation_on(self, corpus: Corpus) -> Processor:
        """Return a processor that does not read texts and annotations that a corpus lacks, such as a labelled folder.

        What a method sees, such as images, is read as before. Values of all columns are collated as before.
        """
        lacking = {
            name
            for name, column in self.columns.items()
            if {*column.reads} <= {*ANNOTATIONS} and column.reads and not column.available([corpus])
        }
        reading = copy(self)
        reading.unread = self.unread | lacking
        return reading

    def load_example(self, corpus: Corpus, row: int) -> Example:
        """One row, decoded, without the sparse columns that it lacks. Raises UnreadableExample."""
        columns = {name: column for name, column in self.columns.items() if name not in self.unread}
        if not self.sparse:
            return {name: column.load(corpus, row) for name, column in columns.items()}
        there = {type(modality) for name, modality in corpus.columns.items() if corpus.raw(row, name) is not None}
        return SparseExample(
            (name, column.load(corpus, row))
            for name, column in columns.items()
            if name not in self.sparse or there & {*column.reads}
        )

    def __call__(self, **values: list[Any]) -> Any:
        """Collate values of some columns, as `load_example` or a user gives them, to a batch of tensors.

        Raises UserError for a column that the method does not take.
        """
        for form in self.formats.values():
            return form(**values)
        return {name: self._collate(name, given) for name, given in values.items()}

    def _collate(self, name: str, values: list[Any]) -> Any:
        reject_unknown_columns([name], [*self.columns, *self.shared])
        shared = self.shared.get(name, SharedColumn(name))
        return getattr(self.columns[shared.column], shared.collate)(values)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("columns", ()):
            return self.columns[name]
        if name in self.__dict__.get("formats", ()):
            return self.formats[name]
        if name in self.__dict__.get("left_out", ()):
            return None
        raise AttributeError(f"This processor has no column '{name}'.")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its texts."""
        return self._of_a_column("tokenizer")

    @property
    def answers(self) -> Sequence[str]:
        """The answers that are classified."""
        return self._of_a_column("answers")

    @property
    def entities(self) -> Sequence[str]:
        """The names of what a region may be."""
        return self._of_a_column("entities")

    def texts(self, rows: list[list[int]]) -> list[str]:
        """Token numbers that a method generated as texts."""
        return self._of_a_column("texts")(rows)

    def _of_a_column(self, name: str) -> Any:
        """The attribute of the first column that has it. Raises AttributeError when none has."""
        for column in self.columns.values():
            if hasattr(column, name):
                return getattr(column, name)
        raise AttributeError(f"No column of this processor has {name}.")


def unavailable(declared: Declared, corpus: Corpus) -> tuple[list[str], list[str]]:
    """Return the names of the required columns that the corpus lacks, and those of the sparse ones."""
    names: tuple[list[str], list[str]] = [], []
    for name, one in declared.items():
        if _is_column(one) and not isinstance(one, Optional) and not _plain(one).available([corpus]):
            names[isinstance(one, Sparse)].append(name)
    return names


def reads_of(declared: Declared, *names: str) -> set[type]:
    """Return the modalities that these columns are read from; by default all columns."""
    columns = {name: _plain(one) for name, one in declared.items() if _is_column(one)}
    return {kind for name in names or columns for kind in columns[name].reads}


def fit_processor(recipe: Any, corpus: Corpus) -> Any:
    """The processor of a recipe, fitted on the training split.

    A recipe whose stages learn from further corpora, or that needs more of a corpus than its required columns say, has
    `training_corpora(corpus)`, which gives them all, or raises UserError.
    """
    corpora = recipe.training_corpora(corpus) if hasattr(recipe, "training_corpora") else [corpus]
    return Processor.fit(corpora, recipe.columns())


def _is_column(declared: Any) -> bool:
    return isinstance(declared, Column | Sparse | Optional)


def _plain(declared: Any) -> Column:
    while isinstance(declared, Sparse | Optional):
        declared = declared.column
    assert isinstance(declared, Column)
    return declared


def _is_sparse(declared: Any) -> bool:
    return isinstance(declared, Sparse) or (isinstance(declared, Optional) and _is_sparse(declared.column))
