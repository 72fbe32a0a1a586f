"""Folders that `save_to_disk` of `datasets` wrote: of a Dataset, or of a DatasetDict, whose splits they keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polymodal.corpora._arrow_files import checked
from polymodal.corpora._tables_in_memory import rows_of
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.rows import Rows
from polymodal.corpora.user_files import first_line
from polymodal.errors import UserError, read_errors

description = "a folder written by save_to_disk of datasets"
FILES = ("dataset_dict.json", "state.json")  # of a DatasetDict, and of a Dataset


def matches(data: DataFiles) -> Match:
    return Match.CONTENT if len(data.given) == 1 and _is_saved(data.given[0]) else Match.NO


def read(data: DataFiles) -> Rows:
    """Map the files into memory. Raises UserError for a damaged folder."""
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(data.given[0]))
    except Exception as error:  # of any kind, by what is missing or cut off
        raise UserError(f"{data.given[0]} cannot be read as a folder of save_to_disk: {first_line(error)}") from error
    for part in saved.values() if isinstance(saved, Mapping) else [saved]:
        with read_errors(data.given[0], "save it again"):
            checked(part.data.table)
    return rows_of(saved, data.given[0])


def _is_saved(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in FILES)
