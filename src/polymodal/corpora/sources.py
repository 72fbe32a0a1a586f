"""The user's own data, wherever it is: files, URLs, data sets of the hub, or a table in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polymodal.corpora import user_files
from polymodal.corpora._downloads import fetched
from polymodal.corpora.about import is_built_in
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.formats import csv, json
from polymodal.corpora.hub import from_hub, is_hub
from polymodal.corpora.in_memory import from_table
from polymodal.corpora.stream import from_shards
from polymodal.errors import UserError

FETCHED = (*csv.SUFFIXES, *json.SUFFIXES)  # files at URLs that are read whole; others are streamed
STREAMED = ("parquet", "webdataset", "img2dataset")  # formats


def from_path(
    path: Path | str | Sequence[Path | str], format: str | None = None, *, stream: bool = False, **columns: str
) -> Corpus:
    """Open data of the user's own: files and folders, URLs, or a data set of the hub.

    path: one or several; see `user_files.from_path`, which reads files here. `hf:OWNER/NAME[:CONFIG][@REVISION]` is a
    data set of the hub. Of URLs, CSV and JSON files are fetched once; shards of Parquet and tar are streamed. format: a
    name of `formats`, instead of the one that is found. stream: see `from_shards`. columns: names of columns by
    modality (`image="photo", text="title"`), instead of those that are inferred.

    Raises UserError, which says what was found and what was expected, for anything that cannot be used.

    Example:
        >>> corpus = from_path("photos/", text="title")  # doctest: +SKIP
    """
    given = [str(path)] if isinstance(path, str | Path) else [str(one) for one in path]
    if any(map(is_hub, given)):
        if len(given) > 1:
            raise UserError(f"Name one data set of the hub at a time, not {len(given)}.")
        return from_hub(given[0], stream, columns)
    local = local_files(given, stream)
    if local is None:
        if format not in (None, *STREAMED):
            raise UserError(f"Data in the format {format} cannot be streamed; leave out --stream.")
        return from_shards(given, **columns)
    corpus = user_files.from_path(local, format, **columns)
    if not any("://" in one for one in given):
        return corpus
    about = replace(corpus.about, source=given[0])
    return replace(corpus, about=about, choices={**corpus.choices, "data": given})


def local_files(given: list[str], stream: bool = False) -> list[Path | str] | None:
    """Return the paths of data that is read here, URLs of CSV and JSON files as what was fetched of them; None for data
    of the hub, and for what is streamed."""
    remote = [one for one in given if "://" in one]
    if stream or any(map(is_hub, given)) or not all(one.lower().endswith(FETCHED) for one in remote):
        return None
    if not remote:
        _check_not_built_in(given)
        return [*given]
    return [copy for one in given for copy in (fetched(one) if "://" in one else [Path(one)])]


def _check_not_built_in(given: list[str]) -> None:
    """Raise UserError where the name of a built-in corpus is given as a path that does not exist."""
    for name in filter(is_built_in, given):
        raise UserError(
            f"There is no file or folder {name}. {name} is a built-in corpus: "
            f"give --corpus {name} on the command line, pm.corpora.{name}() in Python."
        )


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
