"""SDF: molecules with their properties, as SMILES; molecules that RDKit cannot read are skipped and counted."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._delimited import lines_of
from polymodal.corpora.formats._tables import read_tables
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError, needs

description = "SDF files of molecules"
SUFFIXES = (".sdf", ".sdf.gz", ".sd")
BATCH = 1000  # molecules that are converted together
END = "$$$$"


def matches(data: DataFiles) -> Match:
    return Match.SUFFIX if data.with_suffixes(SUFFIXES) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the molecules as a column `smiles`, the title as `title_line`, and each property as a column of strings.

    Raises UserError where RDKit is not installed, or reads none.
    """
    return read_tables(data, data.with_suffixes(SUFFIXES), read_sdf)


def read_sdf(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read one file. Raises UserError without RDKit, or where no molecule can be read."""
    table, skipped = cached_table("sdf", [file], lambda: _convert(file))
    if table.num_rows == 0:
        raise UserError(f"{file} has no molecule that can be read.")
    return table, skipped


def _convert(file: Path) -> Conversion:
    try:
        from rdkit import rdBase
    except ImportError as error:
        raise needs("rdkit", "molecules", "Reading SDF files") from error
    rdBase.DisableLog("rdApp.*")  # what is skipped is counted
    names = dict.fromkeys(name for line in lines_of(file) if (name := _property_name(line)))
    names = dict.fromkeys(name for name in names if name not in ("smiles", "title_line"))
    schema = pa.schema(dict.fromkeys(["smiles", "title_line", *names], pa.string()))
    skipped: list[Skipped] = []
    return Conversion(schema, _batches(file, schema, skipped), skipped)


def _batches(file: Path, schema: pa.Schema, skipped: list[Skipped]) -> Iterator[pa.RecordBatch]:
    from rdkit import Chem

    rows: list[dict[str, Any]] = []
    failures = []
    try:
        with (
            gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb") as stream,
            Chem.ForwardSDMolSupplier(stream) as supplier,
        ):
            for number, molecule in enumerate(supplier, 1):
                if molecule is None or not molecule.GetNumAtoms():
                    failures.append(f"{file}: molecule {number}")
                    continue
                try:
                    properties = molecule.GetPropsAsDict(includePrivate=False, autoConvertStrings=False)
                    title = molecule.GetProp("_Name") if molecule.HasProp("_Name") else ""
                except UnicodeDecodeError:
                    raise UserError(f"{file} is not written in UTF-8; convert it, for example with iconv.") from None
                written = {name: str(value).strip() or None for name, value in properties.items()}
                rows.append(written | {"smiles": Chem.MolToSmiles(molecule), "title_line": title.strip() or None})
                if len(rows) == BATCH:
                    yield pa.RecordBatch.from_pylist(rows, schema=schema)
                    rows = []
    except (EOFError, gzip.BadGzipFile, RuntimeError) as error:
        failures.append(f"{file}: {error}")
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
    if failures:
        skipped.append(Skipped(len(failures), "is no molecule that RDKit reads", failures[0]))


def _property_name(line: str) -> str | None:
    """Return the name in a line such as `> <logP> (1)`."""
    if not line.startswith(">"):
        return None
    _, less, rest = line.partition("<")
    return rest.rpartition(">")[0] or None if less else None
