"""RefCOCO as its authors publish it: `refs(unc).p`, a pickle, which can run code and is never read."""

from __future__ import annotations

import re
from pathlib import Path

from polymodal.corpora.formats._data_files import DataFiles

_REFS = re.compile(r"refs\([\w-]+\)\.(p|pkl|pickle)$", re.IGNORECASE)


def pickled_refs(data: DataFiles) -> list[Path]:
    """Return the pickles of referring expressions among the files."""
    return [file for file in data.with_suffixes((".p", ".pkl", ".pickle")) if _REFS.search(file.name)]
