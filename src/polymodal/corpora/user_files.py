"""The user's own data: files in any of the `formats`, or a table in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.corpora._types import is_string
from polymodal.corpora._user_splits import user_splits
from polymodal.corpora.corpus import About, Corpus, Skipped, command_that_shows
from polymodal.corpora.formats import format_of, module
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.corpora.rows import Rows
from polymodal.corpora.saved import open_saved
from polymodal.corpora.schemas import convert, described_columns, find
from polymodal.errors import UserError, read_errors
from polymodal.modalities import (
    Audio,
    Conversations,
    Image,
    Interleaved,
    Modality,
    Preferences,
    Questions,
    Text,
    Video,
    Words,
)

KEYS = ("__key__", "key", "id", "image_id", "uid", "sample_key")  # columns that name the rows, if their values differ

RECORDS = (Conversations, Interleaved, Preferences, Questions, Words)


def from_path(path: Path | str | Sequence[Path | str], format: str | None = None, **columns: str) -> Corpus:
    """Open data of the user's own, memory-mapped: files and folders in one of `formats`, found by looking at them.

    path: one or several paths; a pattern with `*` or `{000..123}` stands for several. format: a name of `formats`,
    instead of the one that is found. columns: names of columns by modality (`image="photo", text="title"`), instead of
    those that are inferred by type and by usual names. Images and sounds are encoded bytes, or paths relative to the
    folder of the file.

    Splits are those of a column `split`, or those that files or folders state (`train/`, `val-0001.parquet`). Without
    them a fifth becomes `test` and a tenth `validation` by the content of the rows, such that rows with equal media or
    an equal caption are never in two splits, and a row stays where it is when others are added.

    Raises UserError, which says what was found and what was expected, for anything that cannot be used.

    Example:
        >>> corpus = from_path("photos/", text="title")  # doctest: +SKIP
    """
    given = [path] if isinstance(path, str | Path) else list(path)
    data, name = files_and_format(given, format)
    try:
        corpus = _read(data, name, given, format, columns)
    except UserError as error:
        raise UserError(f"{error}{command_that_shows([str(one) for one in given])}") from error
    return replace(corpus, format=name)


def _read(
    data: DataFiles, name: str, given: Sequence[Path | str], format: str | None, columns: dict[str, str]
) -> Corpus:
    """Return the corpus of files in a format. format: that the user named, if any."""
    if name == "saved_corpus":
        return replace(open_saved(data.given[0]), split_rule="the column 'split'")
    rows = rows_of_format(name, data)
    if data.samples:
        listed = ", ".join(file.name for file in data.samples)
        note = f"Left out as samples of the tables beside them: {listed}; name a file itself to read it."
        rows = replace(rows, notes=(*rows.notes, note))
    about = About(data.name, f"{rows.table.num_rows:,} examples of {data.name}", "the user's own", str(given[0]), ())
    choices: dict[str, Any] = {"data": [str(one.resolve()) for one in data.given]}
    with _errors_of_format(name, data):
        return corpus_of(rows, about, columns, choices | {"format": format, "columns": dict(columns)})


def rows_of_format(name: str, data: DataFiles) -> Rows:
    """Read files in a format. Raises UserError for damaged ones, whatever error its reader or a library raises."""
    with _errors_of_format(name, data):
        return module(name).read(data)


def _errors_of_format(name: str, data: DataFiles) -> AbstractContextManager[None]:
    return read_errors(data.given[0], f"it was read as {name}; leave the damaged file out, or write it again")


def files_and_format(given: Sequence[Path | str], format: str | None = None) -> tuple[DataFiles, str]:
    """Return the files that paths name, and the name of their format. Raises UserError where none is sure enough."""
    data = DataFiles.of(given)
    return data, format or format_of(data)


def corpus_of(rows: Rows, about: About, named: dict[str, str], choices: dict[str, Any]) -> Corpus:
    """Return the corpus of rows: modalities of their columns, and splits. Raises UserError when no column has one."""
    without = [name for name in (rows.keys, *rows.plain) if name and name not in (*rows.columns, *named.values())]
    schema = find(rows.table.drop_columns(without) if without else rows.table, rows.root, named, rows.columns)
    if not schema.columns:
        raise UserError(
            "No column has image bytes, paths of images, sounds or clips, texts, or anything else that methods learn "
            f"from; the columns are {described_columns(rows.table)}. Name one, for example with "
            "--image-column COLUMN."
        )
    table = convert(rows.table, schema)
    columns = {name: column.modality for name, column in schema.columns.items()}
    keys = rows.keys or next((name for name in KEYS if name in table.column_names and _name_rows(table, name)), None)
    splits = user_splits(table, columns, rows.root, keys, rows.split)
    empty = _without_records(table, columns)
    skipped = list(rows.skipped)
    if empty.any():
        first = int(np.argmax(empty))
        name = str(table.column(keys)[first]) if keys else f"row {first}"
        skipped.append(Skipped(int(empty.sum()), "has nothing to learn from in its columns of texts", name))
    kinds = tuple(dict.fromkeys(type(kind).__name__.lower() for kind in columns.values()))
    return Corpus(
        about=About(about.name, about.description, about.license, about.source, kinds),
        table=table,
        columns=columns,
        splits={split: members[~empty[members]] for split, members in splits.rows.items()},
        keys=keys or next(iter(path_columns(table, columns)), None),  # paths name the rows in messages
        label=rows.label or schema.label,
        prompts=schema.prompts,
        choices=choices,
        skipped=tuple(skipped),
        notes=(*rows.notes, *schema.notes, *splits.notes),
        split_rule=splits.rule,
    )


def _without_records(table: Any, columns: dict[str, Any]) -> np.ndarray:
    """Return which rows have no question, pair, message, document, words or caption, where rows are to have some."""
    names = [name for name, kind in columns.items() if isinstance(kind, (*RECORDS, Text))]
    empty = np.full(table.num_rows, any(isinstance(kind, RECORDS) for kind in columns.values()))
    for name in names:
        empty &= ~table.column(name).is_valid().to_numpy()
    return empty


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or its type if it is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _name_rows(table: Any, name: str) -> bool:
    """Return whether most values of a column differ; rows with an equal one are in one split."""
    import pyarrow.compute as pc

    try:
        return pc.count_distinct(table.column(name)).as_py() > table.num_rows / 2
    except NotImplementedError:  # nested values
        return False


def path_columns(table: Any, columns: Mapping[str, Modality]) -> list[str]:
    """Return the columns of images, sounds and clips that a table has as paths."""
    media = [name for name, kind in columns.items() if isinstance(kind, Image | Audio | Video)]
    return [name for name in media if name in table.column_names and is_string(table.schema.field(name).type)]
