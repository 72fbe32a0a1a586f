"""Schemas: how the columns of a table hold a modality. The list of schemas is this folder.

A schema is a module with `rank`, `option` and `find(view) -> Found | None`. Schemas of lower rank choose first: 0 for
nested records with fields of their own, 1 for encoded media and paths, 2 for single values, 3 for texts, 4 for what is
left. option: the NAME of `--NAME-column`, with which a user names the column; empty for none.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora._types import short_type
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.errors import unknown
from polymodal.modalities import Modality


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all schemas."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))


def options() -> tuple[str, ...]:
    """Return the modalities whose column a user can name, such as `image` and `text`."""
    return tuple(sorted(module.option for module in _modules() if module.option))


def find(
    table: pa.Table,
    root: Path,
    named: Mapping[str, str],
    already: Mapping[str, Modality] | None = None,
    whole: pa.Table | None = None,
) -> Found:
    """Find the modalities of a table's columns.

    named: columns that the user named, by option. already: columns whose modality is known. whole: see `View`. A named
    column replaces one whose modality is known. Raises UserError for a named column that does not exist, or does not
    fit.
    """
    for option, column in named.items():
        if option not in options():
            raise unknown("kind of column", option, options())
        if column not in table.column_names:
            raise unknown("column", column, table.column_names)
    columns: dict[str, FoundColumn] = {name: FoundColumn(kind) for name, kind in (already or {}).items()}
    taken, label = {*columns}, None
    prompts: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()
    samples: dict[str, list[Any]] = {}
    for module in _modules():
        chosen = named.get(module.option) if module.option else None
        reserved = {column for option, column in named.items() if option != module.option}
        free = tuple(name for name in table.column_names if name not in taken | reserved and not name.startswith("__"))
        found_so_far = {name: column.modality for name, column in columns.items()}
        result = module.find(View(table, root, free, chosen, found_so_far, samples, whole))
        if result is not None:
            if chosen is not None:  # instead of what the format takes for it
                kinds = {type(column.modality) for column in result.columns.values()}
                columns = {name: column for name, column in columns.items() if type(column.modality) not in kinds}
            columns |= result.columns
            taken |= {*result.uses}
            label, prompts = result.label or label, {**prompts, **result.prompts}
            notes += result.notes
    return Found(columns, tuple(sorted(taken)), label, prompts, notes)


def convert(table: pa.Table, result: Found) -> pa.Table:
    """Return the table with the stored values of all found columns in place of, or beside, those it had."""
    for name, column in result.columns.items():
        if column.convert is not None:
            values = column.convert(table)
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, values)
            else:
                table = table.append_column(name, values)
    return table


def described_columns(table: pa.Table) -> str:
    """Return names and types of all columns, for messages."""
    return ", ".join(f"{field.name} ({short_type(field.type)})" for field in table.schema)


@functools.cache
def _modules() -> tuple[Any, ...]:
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names()]
    return tuple(sorted(modules, key=lambda module: (module.rank, module.__name__)))


__all__ = ["Found", "FoundColumn", "View", "convert", "described_columns", "find", "names", "options"]
