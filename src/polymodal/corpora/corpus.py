"""Corpus (dataset): an Arrow table on disk, the modality of each column, and splits without leakage."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora.about import About
from polymodal.errors import MissingModality, UnreadableExample, UserError
from polymodal.modalities import Image, Modality
from polymodal.modalities.image import encoded
from polymodal.modalities.image_modes import to_rgb
from polymodal.modalities.json_values import parsed
from polymodal.notebook import html_image, html_table
from polymodal.types import Example

THUMBNAILS, THUMBNAIL_SIZE = 4, 96  # images of a corpus in a notebook, and their longer side in px


class Part(NamedTuple):
    """Training rows and their sampling weight relative to other parts of a corpus.

    order: maps a seed to an endless order of the rows with random access; by default, they are shuffled in every epoch.
    """

    rows: np.ndarray
    weight: float
    order: Callable[[int], Any] | None = None


@dataclass(frozen=True)
class Skipped:
    """Rows or files that are left out. reason: a clause, such as "has 3 fields, the headings 2". example: one of
    them."""

    count: int
    reason: str
    example: str


@dataclass(frozen=True)
class Corpus:
    """Dataset with random access to examples by row index.

    table: memory-mapped Arrow. columns: the modality of each column that methods and evaluations may use. splits: row
    indices by split: `train`, `validation`, `test`, and `test_*` for shifted tests. keys: column whose values name the
    examples in reports. label: Category column for zero-shot classification and probing. prompts: texts that describe
    each label. choices: how to reopen this corpus (`--data`, `--image-column`, `--text-column`), recorded in runs.
    keeps_decoded: whether decoded examples may be kept in memory, which pays when they are reused soon. skipped: what
    was left out when the user's files were opened. notes: sentences about how they were read. format: of the user's
    files. split_rule: what the splits of the user's data are by, such as "the column 'fold'". train_order: order of the
    training rows for a seed, see `Part`.
    """

    about: About
    table: pa.Table
    columns: Mapping[str, Modality]
    splits: Mapping[str, np.ndarray]
    keys: str | None = None
    label: str | None = None
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)
    keeps_decoded: bool = True
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    format: str = ""
    split_rule: str = ""
    train_order: Callable[[int], Any] | None = None

    @property
    def name(self) -> str:
        return self.about.name

    def __repr__(self) -> str:
        splits = ", ".join(f"{split} {len(rows):,}" for split, rows in self.splits.items())
        return f"{self.name}: {len(self):,} examples ({splits})"

    def _repr_html_(self) -> str:
        """A small table of splits and columns, with thumbnails of the first training images."""
        splits = ", ".join(f"{split} {len(rows):,}" for split, rows in self.splits.items())
        columns = ", ".join(f"{name} ({type(modality).__name__})" for name, modality in self.columns.items())
        facts = {"examples": f"{len(self):,}", "splits": splits, "columns": columns, "about": self.about.description}
        rows = [(name, value) for name, value in facts.items() if value]
        return html_table(self.name, (), rows) + "".join(self._thumbnails())

    def _thumbnails(self) -> Iterator[str]:
        column = next((name for name, modality in self.columns.items() if isinstance(modality, Image)), None)
        rows = self.splits.get("train", ())[:THUMBNAILS] if column else ()
        for row in rows:
            with suppress(UnreadableExample, OSError):
                image = to_rgb(self.value(int(row), column or ""))
                image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
                yield html_image(encoded(image), self.key(int(row)))

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row: int) -> Example:
        """Decode all columns of one example. Raises UnreadableExample when one cannot be decoded."""
        stored = {name: self.raw(row, name) for name in self.columns}
        return {name: self.columns[name].decode(value) for name, value in stored.items() if value is not None}

    def value(self, row: int, column: str, **options: Any) -> Any:
        """Decode one value. Raises UnreadableExample when it is missing or cannot be decoded.

        options: of the modality's `decode`.
        """
        stored = self.raw(row, column)
        if stored is None:
            raise UnreadableExample(f"there is no {column}")
        return self.columns[column].decode(stored, **options)

    def has(self, *columns: str) -> np.ndarray:
        """Return for each row whether it has a value in all of these columns."""
        present = np.ones(len(self), dtype=bool)
        for column in columns:
            present &= self.table.column(column).is_valid().to_numpy()
        return present

    def raw(self, row: int, column: str) -> Any:
        """Return one value as it is stored."""
        return parsed(self.table.column(column)[int(row)].as_py(), self.table.schema.field(column).type)

    def key(self, row: int) -> str:
        """Return the name of an example in messages: its key, or its row index."""
        return str(self.raw(row, self.keys)) if self.keys else f"row {row}"

    def rows(self, split: str) -> np.ndarray:
        """Return the row indices of a split. Raises UserError for an unknown split."""
        if split not in self.splits:
            raise UserError(f"The corpus '{self.name}' has no split '{split}'; it has {', '.join(self.splits)}.")
        return self.splits[split]

    def raw_values(self, rows: np.ndarray, column: str) -> list[Any]:
        """Return many values of a column, as they are stored."""
        kind = self.table.schema.field(column).type
        return [parsed(value, kind) for value in self.table.column(column).take(rows).to_pylist()]

    def stored_lengths(self, column: str) -> np.ndarray:
        """Return the length of each row's value without decoding it; 0 where there is none.

        Bytes of texts (all texts of a row) and of encoded values; the number of elements of other lists.
        """
        stored = self.table.column(column).combine_chunks()
        if not pa.types.is_list(stored.type):
            return pc.fill_null(pc.binary_length(stored), 0).to_numpy()
        if pa.types.is_struct(stored.type.value_type) and "text" in stored.type.value_type.names:
            texts = pc.fill_null(pc.binary_length(pc.struct_field(pc.list_flatten(stored), "text")), 0).to_numpy()
            return np.bincount(pc.list_parent_indices(stored).to_numpy(), texts, len(stored)).astype(np.int64)
        return pc.fill_null(pc.list_value_length(stored), 0).to_numpy()

    def sample(self, split: str, count: int) -> np.ndarray:
        """Return at most `count` evenly spaced rows of a split, to fit vocabularies and statistics on."""
        rows = self.rows(split)
        return rows[:: -(-len(rows) // count)] if len(rows) > count else rows

    def parts(self, split: str) -> list[Part]:
        """Return the training sources with their weights; a plain corpus has one."""
        return [Part(self.rows(split), 1.0, self.train_order if split == "train" else None)]

    def has_modality(self, kind: type) -> bool:
        """Return whether it has a column of a modality."""
        return any(isinstance(modality, kind) for modality in self.columns.values())

    def column_with(self, kind: type) -> str:
        """Return the first column of a modality. Raises UserError when there is none."""
        for name, modality in self.columns.items():
            if isinstance(modality, kind):
                return name
        available = ", ".join(f"{name} ({type(modality).__name__.lower()})" for name, modality in self.columns.items())
        wanted = kind.__name__.lower()
        message = f"The corpus '{self.name}' has no {wanted} column; it has {available}.{self.hint}"
        raise MissingModality(message, wanted)

    def require(self, kind: type, named: str, remedy: str) -> None:
        """Raise MissingModality for a corpus without a modality.

        named: what it lacks, in the plural. remedy: what the user can do, as an imperative.
        """
        if not self.has_modality(kind):
            raise MissingModality(f"The corpus '{self.name}' has no {named}; {remedy}.{self.hint}", named)

    @property
    def hint(self) -> str:
        """What errors about the user's data end with: the command that shows it; '' for built-in corpora."""
        return command_that_shows(self.choices.get("data", ()))

    def with_splits(self, splits: Mapping[str, np.ndarray]) -> Corpus:
        """Return the same examples with other splits."""
        return replace(self, splits=splits)


def command_that_shows(paths: str | Sequence[str]) -> str:
    """Return the sentence, after a blank, that names the command for these data of the user; '' for none."""
    paths = [paths] if isinstance(paths, str) else list(paths)
    if not paths:
        return ""
    here = os.getcwd() + os.sep
    given = shlex.join([path.removeprefix(here) for path in paths[:1]]) + (" ..." if len(paths) > 1 else "")
    return f" `polymodal data {given}` shows what was found."
