"""What a schema sees of a table, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora._types import is_list, is_string
from polymodal.errors import UserError
from polymodal.modalities import Modality

SAMPLE = 100  # rows that are looked at

Convert = Callable[[pa.Table], "pa.Array | pa.ChunkedArray"]


@dataclass(frozen=True)
class FoundColumn:
    """A column with its modality. convert: makes its stored values from the columns of a table, or of any part of it;
    None where the column of this name is stored already as the modality decodes it."""

    modality: Modality
    convert: Convert | None = None


@dataclass(frozen=True)
class Found:
    """What a schema found. uses: columns of the table that are no longer free. label: the Category column. prompts:
    texts of each class. notes: sentences for the user about how values were read."""

    columns: Mapping[str, FoundColumn]
    uses: tuple[str, ...]
    label: str | None = None
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """A table, as a schema sees it. free: columns that no other schema took. root: folder of relative paths. named: the
    column that the user named for this schema. modalities: those of the columns that other schemas found, by name.
    samples: of columns that were looked at, shared by the views of one table. whole: where the table is a sample of a
    stream, the columns that were read with all rows; else None."""

    table: pa.Table
    root: Path
    free: tuple[str, ...]
    named: str | None = None
    modalities: Mapping[str, Modality] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)
    whole: pa.Table | None = None

    def all_rows(self, name: str) -> pa.ChunkedArray:
        """Return a column with all rows, where `whole` has it."""
        if self.whole is not None and name in self.whole.column_names:
            return self.whole.column(name)
        return self.table.column(name)

    def type(self, name: str) -> pa.DataType:
        return self.table.schema.field(name).type

    def sample(self, name: str) -> list[Any]:
        """Return values that are not missing, of the first rows and of others that are spread over the table."""
        if name not in self.samples:
            column = self.table.column(name)
            places = range(0, len(column), max(1, len(column) // SAMPLE)) if len(column) > 2 * SAMPLE else ()
            values = column[:SAMPLE].to_pylist() + [column[place].as_py() for place in list(places)[:SAMPLE]]
            self.samples[name] = [value for value in values if value is not None]
        return self.samples[name]

    def texts(self, name: str) -> list[str]:
        """Return the sample of a column of strings, or of lists of strings, as strings; none for other columns."""
        kind = self.type(name)
        if is_string(kind):
            return self.sample(name)
        if is_list(kind) and is_string(kind.value_type):
            return [text for texts in self.sample(name) for text in texts if text is not None]
        return []

    def usual(self, names: tuple[str, ...]) -> list[str]:
        """Return the free columns with one of these names in any case, in the order of the names."""
        by_name: dict[str, str] = {}
        for column in self.free:
            by_name.setdefault(column.lower(), column)
        return [by_name[name] for name in names if name in by_name]

    def refuse(self, what: str) -> UserError:
        """Return the error for a column that the user named, and that does not fit."""
        return UserError(f"The column '{self.named}' is {self.type(str(self.named))}, which is no {what} column.")
