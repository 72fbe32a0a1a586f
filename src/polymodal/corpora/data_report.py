"""What is found in the user's data: columns with examples, what cannot be read, splits and leaks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._types import short_type
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.leaks import MAX_IMAGES, Leak, find_leaks
from polymodal.errors import UnreadableExample

EXAMPLES = 3
SAMPLED = 200  # values of a column that are decoded, spread over the data
MAX_TEXT = 60  # characters of an example
MAX_UNREADABLE = 0.1  # of the rows, above which a run stops


@dataclass(frozen=True)
class ColumnReport:
    """A column: stored type, modality ('' for none), fraction of rows with a value, examples.

    sampled, unreadable: values that were decoded, and of those the ones that could not be. reason: of the first.
    """

    name: str
    stored: str
    modality: str
    filled: float
    examples: tuple[str, ...]
    sampled: int = 0
    unreadable: int = 0
    reason: str = ""

    @property
    def usable(self) -> bool:
        return bool(self.modality) and self.unreadable <= MAX_UNREADABLE * self.sampled


@dataclass(frozen=True)
class DataReport:
    """rule: what the splits are by. sizes: rows by split. skipped, notes: of the corpus."""

    format: str
    rows: int
    columns: tuple[ColumnReport, ...]
    rule: str
    sizes: dict[str, int]
    leaks: tuple[Leak, ...]
    skipped: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    streamed: bool = False

    def record(self) -> dict[str, Any]:
        """Return it for scripts."""
        leaks = [
            {"kind": leak.kind, "split": leak.split, "other": leak.other, "rows": len(leak.rows), "keys": leak.keys}
            for leak in self.leaks
        ]
        return {
            "format": self.format,
            "rows": self.rows,
            "columns": {column.name: _without(asdict(column), "name") for column in self.columns},
            "splits": {"by": self.rule, "rows": self.sizes, "leaks": leaks},
            "skipped": list(self.skipped),
            "notes": list(self.notes),
        }


def report_on(corpus: Corpus, max_images: int = MAX_IMAGES) -> DataReport:
    """Look at a corpus of the user's. max_images: that are compared to find near-duplicates."""
    leaks, compared = find_leaks(corpus, max_images)
    return DataReport(
        format=corpus.format or "streamed shards",
        rows=len(corpus),
        columns=(*_with_modality(corpus), *columns_of_table(corpus.table, without=corpus.columns)),
        rule=corpus.split_rule or "what the shards end with",
        sizes={split: len(rows) for split, rows in corpus.splits.items()},
        leaks=tuple(leaks),
        skipped=tuple(asdict(skipped) for skipped in corpus.skipped),
        notes=(*corpus.notes, *([compared] if compared else [])),
        streamed=corpus.table.num_rows == 0,
    )


def columns_of_table(table: pa.Table, without: Any = ()) -> tuple[ColumnReport, ...]:
    """Report the columns of a table that have no modality."""
    return tuple(
        ColumnReport(
            field.name,
            short_type(field.type),
            "",
            _filled(table, field.name),
            _stored_examples(table.column(field.name)),
        )
        for field in table.schema
        if field.name not in without and not field.name.startswith("__")
    )


def _with_modality(corpus: Corpus) -> list[ColumnReport]:
    reports = []
    for name, modality in corpus.columns.items():
        streamed = name not in corpus.table.column_names
        present = np.arange(len(corpus)) if streamed else np.flatnonzero(corpus.has(name))
        rows = present[:SAMPLED] if streamed else present[:: max(1, -(-len(present) // SAMPLED))]
        examples: list[str] = []
        reasons: list[str] = []
        for row in rows.tolist():
            try:
                value = corpus.value(row, name)
                load = getattr(value, "load", None)  # Pillow decodes pixels when they are used
                if callable(load):
                    load()
                examples.append(shortened(modality.describe(value)))
            except (UnreadableExample, OSError, SyntaxError, ValueError) as error:
                reasons.append(f"{corpus.key(row)}: {error}")
        reports.append(
            ColumnReport(
                name=name,
                stored="" if streamed else short_type(corpus.table.schema.field(name).type),
                modality=type(modality).__name__.lower(),
                filled=1.0 if streamed else _filled(corpus.table, name),
                examples=_three(examples),
                sampled=len(rows),
                unreadable=len(reasons),
                reason=reasons[0] if reasons else "",
            )
        )
    return reports


def _three(examples: list[str]) -> tuple[str, ...]:
    """Return different ones where there are, spread over the data."""
    different = list(dict.fromkeys(examples))
    if len(different) < EXAMPLES:
        return tuple((different + examples[len(different) :])[:EXAMPLES])
    return tuple(different[:: max(1, len(different) // EXAMPLES)][:EXAMPLES])


def _filled(table: pa.Table, name: str) -> float:
    return 1 - table.column(name).null_count / max(table.num_rows, 1)


def _stored_examples(column: pa.ChunkedArray) -> tuple[str, ...]:
    places = range(0, len(column), max(1, len(column) // SAMPLED))
    values = (column[place].as_py() for place in places)
    return _three([shortened(_in_words(value)) for value in values if value is not None])


def _in_words(value: Any) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)


def shortened(text: str, width: int = MAX_TEXT) -> str:
    """Return the text in one line of printable characters, at most so long."""
    line = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}
