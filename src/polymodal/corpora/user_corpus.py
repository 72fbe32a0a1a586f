"""The corpus of the rows of files, a hub data set or a table in memory: modalities of its columns, and splits."""

from __future__ import annotations

from typing import Any

from polymodal.corpora._user_splits import user_splits
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas import convert, described_columns, find
from polymodal.errors import UserError

KEYS = ("__key__", "key", "id", "image_id", "uid", "sample_key")  # columns that name the rows, if their values differ


def corpus_of(rows: Rows, about: About, named: dict[str, str], choices: dict[str, Any]) -> Corpus:
    """Return the corpus of rows: modalities of their columns, and splits. Raises UserError when no column has one."""
    inferred = find(rows.table, rows.root, named, rows.columns)
    if not inferred.columns:
        raise UserError(
            "No column has image bytes, paths of images, sounds or clips, texts, or anything else that methods learn "
            f"from; the columns are {described_columns(rows.table)}. Name one, for example with "
            "--image-column COLUMN."
        )
    table = convert(rows.table, inferred)
    columns = {name: column.modality for name, column in inferred.columns.items()}
    keys = rows.keys or next((name for name in KEYS if name in table.column_names and _are_unique(table, name)), None)
    splits = user_splits(table, columns, rows.root, keys, rows.split)
    kinds = tuple(dict.fromkeys(type(kind).__name__.lower() for kind in columns.values()))
    return Corpus(
        about=About(about.name, about.description, about.license, about.source, kinds),
        table=table,
        columns=columns,
        splits=splits.rows,
        keys=keys or _path_column(table, columns),
        label=rows.label or inferred.label,
        prompts=inferred.prompts,
        choices=choices,
        skipped=rows.skipped,
        notes=(*rows.notes, *splits.notes),
    )


def _are_unique(table: Any, name: str) -> bool:
    import pyarrow.compute as pc

    try:
        return pc.count_distinct(table.column(name)).as_py() == table.num_rows
    except NotImplementedError:  # nested values
        return False


def _path_column(table: Any, columns: dict[str, Any]) -> str | None:
    """Return the first column of paths, whose values name the rows in messages."""
    from polymodal.corpora._types import is_string

    kinds = ("Image", "Audio", "Video")
    paths = (name for name, kind in columns.items() if type(kind).__name__ in kinds)
    return next((name for name in paths if is_string(table.schema.field(name).type)), None)
