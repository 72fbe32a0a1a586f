"""Single cells in .h5ad files (AnnData): expression of genes, and what is observed of each cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._tables import read_tables
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError, needs
from polymodal.modalities import Category, Cell, Modality
from polymodal.modalities.modality import to_npy

description = "AnnData files of single cells (.h5ad)"
SUFFIXES = (".h5ad",)
COLUMN = "expression"
TYPES = ("cell_type", "celltype", "cell_types", "celltypes", "bulk_labels", "cell_ontology_class", "louvain", "leiden")
SYMBOLS = ("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol")
BATCH = 256  # cells that are converted together


def matches(data: DataFiles) -> Match:
    return Match.SUFFIX if data.with_suffixes(SUFFIXES) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read `X`, dense or sparse, the names of the genes, and the columns of `obs`; a usual one is the cell type.

    Raises UserError without h5py, for files of another form, and for several with different genes.
    """
    files = data.with_suffixes(SUFFIXES)
    genes = {file: _genes(file) for file in files}
    other = next((file for file in files if genes[file] != genes[files[0]]), None)
    if other is not None:
        raise UserError(f"{other} has other genes than {files[0]}; write both with the same genes, in the same order.")
    rows = read_tables(data, files, _read)
    by_name = {name.lower(): name for name in rows.table.column_names}
    label = next((by_name[name] for name in TYPES if name in by_name), None)
    columns: dict[str, Modality] = {COLUMN: Cell(genes[files[0]])}
    if label is not None:
        names = rows.table.column(label).cast(pa.string())  # clusters may be numbered
        table = rows.table.set_column(rows.table.column_names.index(label), label, names)
        rows = replace(rows, table=table)
        columns[label] = Category(tuple(sorted(names.unique().drop_null().to_pylist())))
    return Rows(rows.table, rows.root, columns, rows.split, keys="cell", label=label, skipped=rows.skipped)


def _open(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise needs("h5py", "corpora", "Reading .h5ad files") from error
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise UserError(f"{file} cannot be read as h5ad; it is damaged, or of another kind.") from error
    missing = [name for name in ("X", "obs", "var") if name not in opened]
    groups = [name for name in ("obs", "var") if name in opened and not isinstance(opened[name], h5py.Group)]
    if missing or groups:
        opened.close()
        what = f"has no {missing[0]}" if missing else "is of a version of AnnData before 0.7"
        raise UserError(f"{file} {what}; write it anew with AnnData's write_h5ad.")
    return opened


def _genes(file: Path) -> tuple[str, ...]:
    with _open(file) as opened:
        names = next((name for name in SYMBOLS if name in opened["var"]), _index(opened["var"]))
        return tuple(map(str, _values(opened["var"], names)))


def _read(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    return cached_table("h5ad", [file], lambda: _convert(file))


def _convert(file: Path) -> Conversion:
    with _open(file) as opened:
        observed = opened["obs"]
        index = _index(observed)
        columns = {"cell": pa.array(list(map(str, _values(observed, index))), pa.string())}
        for name in observed:
            if name not in (index, "cell", COLUMN, "__categories"):
                values = _values(observed, name)
                if len(values) == len(columns["cell"]):
                    columns[name] = _array(values)
    schema = pa.schema([(COLUMN, pa.binary()), *((name, values.type) for name, values in columns.items())])
    return Conversion(schema, _batches(file, columns, schema))


def _batches(file: Path, columns: dict[str, pa.Array], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    total = len(columns["cell"])
    with _open(file) as opened:
        stored = _by_rows(opened["X"])
        for start in range(0, total, BATCH):
            end = min(start + BATCH, total)
            profiles = [to_npy(row) for row in _expression(stored, start, end, file)]
            others = [values.slice(start, end - start) for values in columns.values()]
            yield pa.RecordBatch.from_arrays([pa.array(profiles, pa.binary()), *others], schema=schema)


def _shape(stored: Any) -> tuple[int, int]:
    rows, genes = (int(size) for size in stored.attrs.get("shape", stored.attrs.get("h5sparse_shape")))
    return rows, genes


def _by_rows(stored: Any) -> Any:
    """Return `X`; a sparse matrix that is stored by columns is read once, and converted to rows."""
    if hasattr(stored, "keys"):
        kind = _text(stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format", "csr")))
        if kind.startswith("csc"):
            from scipy.sparse import csc_array

            parts = stored["data"][:], stored["indices"][:], stored["indptr"][:]
            return csc_array(parts, shape=_shape(stored)).tocsr()
    return stored


def _expression(stored: Any, start: int, end: int, file: Path) -> np.ndarray:
    """Return the rows of `X` as float32: of a dense array, or of a sparse matrix by rows."""
    if not hasattr(stored, "keys"):
        part = stored[start:end]
        return (part.toarray() if hasattr(part, "toarray") else part).astype(np.float32)
    genes = _shape(stored)[1]
    starts = stored["indptr"][start : end + 1].astype(np.int64)
    dense = np.zeros((end - start, genes), np.float32)
    values, places = (stored[part][starts[0] : starts[-1]] for part in ("data", "indices"))
    if len(places) and not 0 <= places.min() <= places.max() < genes:
        raise UserError(f"{file} is damaged: X has a gene that does not exist.")
    dense[np.repeat(np.arange(end - start), np.diff(starts)), places] = values
    return dense


def _index(group: Any) -> str:
    return _text(group.attrs.get("_index", "_index" if "_index" in group else "index"))


def _values(group: Any, name: str) -> list[Any]:
    """Return a column of `obs` or `var`: numbers, strings, categories, or values with a mask; None where missing."""
    stored = group[name]
    if hasattr(stored, "keys"):
        if "codes" in stored:
            names = [_text(value) for value in _values(stored, "categories")]
            return [names[code] if code >= 0 else None for code in stored["codes"][:].tolist()]
        if "mask" in stored:
            pairs = zip(stored["values"][:].tolist(), stored["mask"][:].tolist(), strict=True)
            return [None if missing else _plain(value) for value, missing in pairs]
        return []
    values = stored[:].tolist()
    if "__categories" in group and name in group["__categories"]:  # AnnData 0.7
        names = [_text(value) for value in group["__categories"][name][:]]
        return [names[code] if code >= 0 else None for code in values]
    return [_plain(value) for value in values]


def _array(values: list[Any]) -> pa.Array:
    """Return values as Arrow; truth values as text, so that they are categories."""
    if any(isinstance(value, bool) for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values, pa.string() if not values or isinstance(values[0], str) else None)


def _plain(value: Any) -> Any:
    return _text(value) if isinstance(value, bytes) else value


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
