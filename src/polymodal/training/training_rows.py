"""Which rows of the user's data a run was trained on, by their content: a small file in its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora._types import is_string
from polymodal.corpora._user_splits import MAX_FILES
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.row_identity import has_identity, row_identities
from polymodal.errors import read_errors
from polymodal.files import written_aside

TRAINING_ROWS = "training_rows.npz"


def save_training_rows(corpus: Corpus, directory: Path) -> None:
    """Write the identities of the training rows; nothing for built-in corpora and streamed shards."""
    if not has_identity(corpus):
        return
    rows = corpus.rows("train")
    # More files than these would take minutes to read: they are known by their paths.
    open_files = len(rows) <= MAX_FILES or not any(is_string(_type(corpus, name)) for name in corpus.columns)
    identities = np.unique(row_identities(corpus, rows, open_files))
    with written_aside(directory / TRAINING_ROWS) as aside, aside.open("wb") as file:
        np.savez_compressed(file, identities=identities, open_files=open_files)


def trained_on(directory: Path, corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Return those of the rows that the run was trained on; none where it is not recorded."""
    path = directory / TRAINING_ROWS
    if not (path.is_file() and has_identity(corpus)):
        return rows[:0]
    advice = "remove it, and test rows that were trained on go unnoticed, or copy it again from where it is whole"
    with read_errors(path, advice), np.load(path, allow_pickle=False) as kept:
        identities, open_files = kept["identities"], kept["open_files"]
        if (
            identities.ndim != 1
            or identities.dtype.kind not in "ui"
            or (open_files.shape, open_files.dtype) != ((), bool)
        ):
            raise ValueError("its arrays are of other shapes or types")
    these = row_identities(corpus, rows, bool(open_files))
    return rows[np.isin(these, identities) & (these != 0)]


def _type(corpus: Corpus, name: str) -> pa.DataType:
    return corpus.table.schema.field(name).type
