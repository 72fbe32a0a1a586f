"""Rows of sounds with what is said in them, as the formats of speech data list them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Audio


def utterances(
    data: DataFiles,
    sounds: Sequence[Path],
    columns: Mapping[str, Sequence[str | None]],
    skipped: Sequence[Skipped] = (),
    splits: Sequence[str] | None = None,
) -> Rows:
    """Return a row for each sound that exists; `columns` has a value for each. splits: those that files state.

    Raises UserError where no file exists.
    """
    listed = set(data.files)
    exists = np.array([sound in listed or os.path.isfile(sound) for sound in sounds], bool)
    if not exists.any():
        of_first = f": {sounds[0]} does not exist" if sounds else ""
        raise UserError(f"None of the {len(sounds):,} sounds that {data.given[0]} names is there{of_first}.")
    left_out = list(skipped)
    if not exists.all():
        missing = sounds[int(np.argmin(exists))]
        left_out.append(Skipped(int((~exists).sum()), "names a file that does not exist", str(missing)))
    rows = np.flatnonzero(exists).tolist()
    paths = [Path(os.path.relpath(str(sounds[row].resolve()), str(data.root))).as_posix() for row in rows]
    others = {name: pa.array([values[row] for row in rows], pa.string()) for name, values in columns.items()}
    split = np.array(splits, dtype=object)[rows] if splits is not None else None
    table = pa.table({"audio": pa.array(paths, pa.string())} | others)
    return Rows(table, data.root, {"audio": Audio(root=data.root)}, split, keys="audio", skipped=tuple(left_out))


def splits_of_rows(files: Mapping[Path, str] | None, of_row: Sequence[Path]) -> list[str] | None:
    """Return the split of each row, of the file that it comes from."""
    return None if files is None else [files[file] for file in of_row]
