"""Several files of rows as one table, with the splits that their names state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fitted, is_string, merged_type, plain_type
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, place_of, splits_of
from polymodal.corpora.formats._named_files import NamedFiles
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas import label, text
from polymodal.corpora.schemas._class_names import one_hot_columns
from polymodal.errors import UserError, read_errors

TARGETS = (*label.USUAL, *text.USUAL)
LOOKED_AT = 20  # values of a column of which a file is looked for
NOTE = b"polymodal.note"  # metadata of a table: a sentence about the file that it was read from
Read = Callable[[Path], tuple[pa.Table, tuple[Skipped, ...]]]


def read_tables(data: DataFiles, files: Sequence[Path], read: Read) -> Rows:
    """Read all files and put their rows one after the other; a column that a file lacks is missing in its rows.

    Relative paths are those of the folder of each file: where the files are in several folders, columns of paths are
    made relative to the folder that contains all. Raises UserError when there is no row.
    """
    if not files:
        raise UserError(f"{data.given[0]} holds {data.summary()}, and nothing in the format that is named.")
    several = len({file.parent.resolve() for file in files}) > 1
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    of_files: list[str] = []
    for file in files:
        with read_errors(file, "write it again, or leave it out"):
            table, left_out = read(file)
        table, sentences = without_note(table)
        of_files += sentences
        tables.append(_from_root(table, data.root / place_of(file, data.root).parent, data.root) if several else table)
        skipped += left_out
    stated = splits_of(files, data.root)
    unlabeled = _without_targets(dict(zip(files, tables, strict=True)), stated or {})
    notes = of_files + [
        f"{file.name} is not read: it has no '{target}', which is to be learned." for file, target in unlabeled
    ]
    kept = [place for place, file in enumerate(files) if file not in dict(unlabeled)]
    files, tables = [files[place] for place in kept], [tables[place] for place in kept]
    root = data.root if several else files[0].parent
    named = NamedFiles(data, root)
    placed = [named.placed(table, file) for table, file in zip(tables, files, strict=True)]
    table = concatenated([table for table, _ in placed])
    notes += dict.fromkeys(note for _, sentences in placed for note in sentences)
    if table.num_rows == 0:
        raise UserError(f"{files[0]} has no rows.")
    split = None
    if stated is not None and len({stated[file] for file in files}) > 1:
        split = np.repeat([stated[file] for file in files], [part.num_rows for part in tables])
    return Rows(table, root, split=split, skipped=tuple(skipped), notes=tuple(notes))


def without_note(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """Return a table without the sentence that its metadata hold, and this sentence, if there is one."""
    metadata = dict(table.schema.metadata or {})
    note = metadata.pop(NOTE, None)
    return (table.replace_schema_metadata(metadata or None), (note.decode(),)) if note else (table, ())


def _without_targets(tables: Mapping[Path, pa.Table], stated: Mapping[Path, str]) -> list[tuple[Path, str]]:
    """Return the tables of held-out splits that lack what is learned, with its name, such as `test.csv` of a
    competition; none where no split is stated."""
    train = [table for file, table in tables.items() if stated.get(file) == "train"]
    held_out = {file: {*table.column_names} for file, table in tables.items() if stated.get(file, "train") != "train"}
    names = {name for table in train for name in table.column_names if name.lower() in TARGETS}
    if not names and train and held_out:  # classes of a column each, of which a held-out table has none
        lacking = [name for name in train[0].column_names if not any(name in columns for columns in held_out.values())]
        names = {*one_hot_columns(train[0], lacking)}
    return [(file, min(names)) for file, columns in held_out.items() if names and not names & columns]


def _from_root(table: pa.Table, folder: Path, root: Path) -> pa.Table:
    """Put the way from the root to the folder before the values of columns of paths: those of which a file exists."""
    if folder == root:
        return table
    for place, field in enumerate(table.schema):
        if is_string(field.type):
            values = [value for value in table.column(place)[:LOOKED_AT].to_pylist() if value and len(value) < 1000]
            if any(not Path(value).is_absolute() and os.path.isfile(folder / value) for value in values):
                way = pa.scalar(f"{folder.relative_to(root).as_posix()}/", field.type)
                paths = pc.binary_join_element_wise(way, table.column(place), "")
                table = table.set_column(place, field.name, paths)
    return table


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of all tables, in columns of a type that holds the values of all. See `merged_type`."""
    types: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.schema:
            kind = plain_type(field.type)
            types[field.name] = merged_type(types[field.name], kind) if field.name in types else kind
    schema = pa.schema(types, metadata=tables[0].schema.metadata)
    return pa.concat_tables([cast_table(table, schema) for table in tables])


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of the schema in its types; those that the table lacks are missing in its rows."""
    columns = [
        _cast(table.column(field.name), field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    try:
        return column.cast(kind)
    except pa.ArrowException:  # a value beside lists, records with other fields
        return pa.chunked_array([pa.array([fitted(value, kind) for value in column.to_pylist()], kind)], kind)
