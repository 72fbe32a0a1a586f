"""The LanceDB table of an index, in a folder or at any URL that LanceDB opens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.errors import UserError, needs

TABLE, ABOUT = "examples", b"polymodal"
KEYS_AT_ONCE = 512  # in a condition
ANN_FROM = 50_000  # number of examples from which approximate nearest neighbor search is faster than exact search
RESERVED_COLUMNS = ("key", "split", "caption", "text", "vector", "thumbnail", "digest")


@dataclass(frozen=True)
class Origin:
    """Provenance of an index. run: its folder. weights: their digest. item: embedded modality."""

    run: str
    weights: str
    item: str
    data: Mapping[str, Any]


def is_index(place: str) -> bool:
    """Return whether a folder holds an index; URLs are assumed to."""
    return "://" in place or (Path(place) / f"{TABLE}.lance").is_dir()


def _connect(place: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise needs("lancedb", "index", "An index") from error
    with user_errors(f"{place} cannot be opened"):
        return lancedb.connect(place)


@contextmanager
def user_errors(what: str) -> Iterator[None]:
    """Convert exceptions of LanceDB to UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{what}: {first_sentence(error)}.") from error


def holds_index(place: str) -> bool:
    """Return whether there is an index already, also at a URL."""
    if not is_index(place):
        return False
    with user_errors(f"{place} cannot be opened"):
        return TABLE in _connect(place).list_tables().tables


def open_table(place: str) -> Any:
    with user_errors(f"The index {place} cannot be opened"):
        return _connect(place).open_table(TABLE)


def read_origin(table: Any) -> Origin:
    """Return the provenance. Raises UserError for a table that polymodal did not build."""
    stored = (table.schema.metadata or {}).get(ABOUT)
    if stored is None:
        raise UserError("This LanceDB table was not made by polymodal index.")
    try:
        return Origin(**json.loads(stored))
    except (ValueError, TypeError) as error:
        raise UserError("This index is damaged or of another version; make it again.") from error


def read_digests(table: Any) -> dict[str, str]:
    """Return key -> digest of all entries."""
    stored = table.search().select(["key", "digest"]).limit(table.count_rows()).to_arrow()
    return dict(zip(stored["key"].to_pylist(), stored["digest"].to_pylist(), strict=True))


def write_rows(place: str, table: Any, rows: pa.Table, about: Origin, replacing: bool) -> Any:
    """Return the table, creating it with its first rows. Raises UserError for columns that an index does not have."""
    new = [] if table is None else [name for name in rows.column_names if name not in table.schema.names]
    if new:
        raise UserError(
            f"The index {place} has no column {', '.join(new)}, which the data has now; remove the index and make it "
            "again, or name another place with --out."
        )
    with user_errors(f"The index {place} cannot be written, but what was written stays"):
        if table is None:
            described = rows.replace_schema_metadata({ABOUT: json.dumps(asdict(about))})
            return _connect(place).create_table(TABLE, described)
        if replacing:
            table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        else:
            table.add(rows)
    return table


def remove_rows(table: Any, keys: list[str]) -> None:
    for start in range(0, len(keys), KEYS_AT_ONCE):
        quoted = ", ".join("'" + key.replace("'", "''") + "'" for key in keys[start : start + KEYS_AT_ONCE])
        table.delete(f"key IN ({quoted})")


def lacks_text_index(table: Any) -> bool:
    """Return whether full-text search is not possible yet, as after a build that was killed at its end."""
    return "text" not in {column for index in table.list_indices() for column in index.columns}


def arrange(table: Any) -> None:
    """Compact small fragments, and build the full-text and, if worthwhile, the vector index."""
    from lancedb.index import FTS

    table.optimize()
    indexed = {column for index in table.list_indices() for column in index.columns}
    if "text" not in indexed:
        table.create_index("text", config=FTS())
    if "vector" not in indexed and table.count_rows() >= ANN_FROM:
        ann_index(table)


def ann_index(table: Any) -> None:
    """Build an IVF index: partitions around centroids, of which a search scans the nearest ones exactly.

    HNSW over 8-bit quantized vectors, which LanceDB has as well, is no faster here, has lower recall, and takes far
    longer to build (benchmarks/search.py).
    """
    from lancedb.index import IvfFlat

    table.create_index("vector", config=IvfFlat(distance_type="cosine"))


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error of LanceDB, without error types."""
    first = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")
    return re.sub(r"^((Invalid input|Schema error|lance error|LanceError\(\w+\))[,:] )+", "", first)
