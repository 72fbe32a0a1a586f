"""The user's own data: files in any of the `formats`, URLs, data sets of the hub, or a table in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polymodal.corpora._downloads import fetched
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.formats import csv, format_of, json, module
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.corpora.hub import from_hub, is_hub
from polymodal.corpora.in_memory import from_table
from polymodal.corpora.saved import open_saved
from polymodal.corpora.stream import from_shards
from polymodal.corpora.user_corpus import corpus_of
from polymodal.errors import UserError

FETCHED = (*csv.SUFFIXES, *json.SUFFIXES)  # files at URLs that are read whole; others are streamed
STREAMED = ("parquet", "webdataset", "img2dataset")  # formats


def from_path(
    path: Path | str | Sequence[Path | str], format: str | None = None, *, stream: bool = False, **columns: str
) -> Corpus:
    """Open data of the user's own, memory-mapped: files and folders in one of `formats`, found by looking at them.

    path: one or several paths; a pattern with `*` or `{000..123}` stands for several. `hf:OWNER/NAME[:CONFIG]
    [@REVISION]` is a data set of the hub. Of URLs, CSV and JSON files are fetched once; shards of Parquet and tar are
    streamed. format: a name of `formats`, instead of the one that is found. stream: see `from_shards`. columns: names
    of columns by modality (`image="photo", text="title"`), instead of those that are inferred by type and by usual
    names. Images and sounds are encoded bytes, or paths relative to the folder of the file.

    Splits are those of a column `split`, or those that files or folders state (`train/`, `val-0001.parquet`). Without
    them a fifth becomes `test` and a tenth `validation` by the content of the rows, such that rows with equal media or
    an equal caption are never in two splits, and a row stays where it is when others are added.

    Raises UserError, which says what was found and what was expected, for anything that cannot be used.

    Example:
        >>> corpus = from_path("photos/", text="title")  # doctest: +SKIP
    """
    given = [str(path)] if isinstance(path, str | Path) else [str(one) for one in path]
    if any(map(is_hub, given)):
        if len(given) > 1:
            raise UserError(f"Name one data set of the hub at a time, not {len(given)}.")
        return from_hub(given[0], stream, columns)
    remote = [one for one in given if "://" in one]
    if stream or (remote and not all(one.lower().endswith(FETCHED) for one in remote)):
        if format not in (None, *STREAMED):
            raise UserError(f"Data in the format {format} cannot be streamed; leave out --stream.")
        return from_shards(given, **columns)
    return _from_files(given, format, columns)


def _from_files(given: Sequence[str], format: str | None, columns: dict[str, str]) -> Corpus:
    data = DataFiles.of([local for one in given for local in (fetched(one) if "://" in one else [one])])
    name = format or format_of(data)
    if name == "saved_corpus":
        return open_saved(data.given[0])
    rows = module(name).read(data)
    about = About(data.name, f"{rows.table.num_rows:,} examples of {data.name}", "the user's own", given[0], ())
    remote = any("://" in one for one in given)
    paths = list(given) if remote else [str(one.resolve()) for one in data.given]
    choices: dict[str, Any] = {"data": paths, "format": format, "columns": dict(columns)}
    return corpus_of(rows, about, columns, choices)


def open_data(data: Any) -> Corpus:
    """Return a corpus of what a user passes as one: a corpus, a path, several paths, or a table in memory.

    Raises UserError for anything that cannot be used; see `from_path` and `from_table`.
    """
    if isinstance(data, Corpus):
        return data
    if isinstance(data, str | Path):
        return from_path(data)
    if isinstance(data, list | tuple) and data and all(isinstance(one, str | Path) for one in data):
        return from_path(data)
    return from_table(data)
