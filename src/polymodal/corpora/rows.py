"""Rows of a data set of the user's, as a format read them: an Arrow table whose columns have no modality yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora.corpus import Skipped
from polymodal.modalities import Modality


@dataclass(frozen=True)
class Rows:
    """What a format reads.

    table: memory-mapped where it comes from files. root: folder of relative paths in it. columns: modalities that the
    format knows; those of other columns are inferred (`schemas/`), but for `plain` ones, which have none. split: the
    split of each row that files or folders state. keys: column that names the rows. label: Category column. notes:
    sentences for the user.
    """

    table: pa.Table
    root: Path = Path()
    columns: Mapping[str, Modality] = field(default_factory=dict)
    split: np.ndarray | None = None
    plain: tuple[str, ...] = ()
    keys: str | None = None
    label: str | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
