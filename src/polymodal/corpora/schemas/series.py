"""Time series and spectra: a column of lists of numbers, or numbered columns such as `t0`, `t1`, `t2` ..."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pyarrow as pa

from polymodal.corpora._types import is_list, is_number
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.corpora.schemas._tabular import are_numbers, numbers
from polymodal.modalities import Audio, Image, Series, Video
from polymodal.modalities.modality import to_npy

rank = 1
option = "series"
USUAL = ("series", "time_series", "timeseries", "signal", "ecg", "eeg", "spectrum", "spectra", "intensities", "values")
MIN_LENGTH = 16  # of numbered columns; fewer are cells of a table


def find(view: View) -> Found | None:
    """Find a column of lists of numbers, or of lists of channels; else numbered columns, if there are no media."""
    if view.named is not None:
        if not _has_series(view, view.named):
            raise view.refuse("series")
        return _of_lists(view.named)
    if any(isinstance(kind, Series) for kind in view.modalities.values()):
        return None
    names = [name for name in view.usual(USUAL) if _has_series(view, name)]
    if names:
        return _of_lists(names[0])
    if any(isinstance(kind, Image | Audio | Video) for kind in view.modalities.values()):
        return None
    wide = _numbered(view)
    return Found({"series": FoundColumn(Series(), partial(_of_columns, wide))}, wide) if wide else None


def _has_series(view: View, name: str) -> bool:
    kind = view.type(name)
    inner = kind.value_type if is_list(kind) else None
    return inner is not None and is_number(inner.value_type if is_list(inner) else inner)


def _of_lists(name: str) -> Found:
    def stored(table: pa.Table) -> pa.Array:
        values = (value.as_py() for value in table.column(name))
        return pa.array([_npy(value) if value else None for value in values], pa.binary())

    return Found({name: FoundColumn(Series(), stored)}, (name,))


def _npy(value: list) -> bytes | None:
    """Return one channel or several as `Series` stores them; None where they differ in length."""
    channels = value if isinstance(value[0], list) else [value]
    if len({len(channel) for channel in channels}) > 1:
        return None
    return to_npy(np.array(channels, np.float32))


def _numbered(view: View) -> tuple[str, ...]:
    """Return the numeric columns that are numbered one after the other, with one name before the numbers."""
    groups: dict[str, dict[int, str]] = {}
    for name in view.free:
        parts = re.fullmatch(r"(.*?)(\d+)", name)
        if parts is not None:
            groups.setdefault(parts[1], {})[int(parts[2])] = name
    for columns in groups.values():
        places = sorted(columns)
        consecutive = len(places) >= MIN_LENGTH and places[-1] - places[0] == len(places) - 1
        if consecutive and all(are_numbers(view, columns[place]) for place in places):
            return tuple(columns[place] for place in places)
    return ()


def _of_columns(names: tuple[str, ...], table: pa.Table) -> pa.Array:
    values = np.stack([numbers(table.column(name)).to_numpy().astype(np.float32) for name in names], axis=1)
    return pa.array([to_npy(row[None]) for row in values], pa.binary())
