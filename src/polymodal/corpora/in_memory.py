"""Tables in memory as corpora: of `datasets`, pandas, polars, pyarrow, or lists of dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polymodal.corpora._tables_in_memory import rows_of
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.user_files import corpus_of


def from_table(data: Any, *, root: Path | str = ".", name: str = "table", **columns: str) -> Corpus:
    """Make a corpus of a table in memory, whose columns are found like those of files.

    data: a `datasets.Dataset` or `IterableDataset` (which is read to its end), a pandas or polars frame (a LazyFrame is
    collected), anything else with Arrow's interface for streams, a list of dicts, a dict of columns; or a dict of such
    tables by split, such as a `DatasetDict`. Images may be PIL images, encoded bytes or paths. root: folder of relative
    paths. columns: names of columns by modality (`image="photo"`), instead of those that are inferred.

    A run that is trained on it cannot open it again: name the data where it is evaluated or resumed. Raises UserError
    for anything that cannot be used.

    Example:
        >>> corpus = from_table([{"image": "a.png", "caption": "a cat"}], root="photos")  # doctest: +SKIP
    """
    folder = Path(root).expanduser().resolve()
    rows = rows_of(data, folder)
    about = About(name, f"{rows.table.num_rows:,} examples of a table in memory", "the user's own", "memory", ())
    return corpus_of(rows, about, columns, {"in_memory": name, "columns": dict(columns)})
