"""Arrow files that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa


def open_arrow(file: Path | str) -> pa.Table:
    """Return the table of an Arrow file, memory-mapped.

    Raises ArrowInvalid or OSError for a damaged one. Offsets are checked, as a wrong one would make Arrow read other
    memory; values of binary columns are not read for that.
    """
    return checked(pa.ipc.open_file(pa.memory_map(str(file))).read_all())


def checked(table: pa.Table) -> pa.Table:
    """Return the table. Raises ArrowInvalid where offsets or lengths do not fit its values, or texts are no UTF-8."""
    table.validate(full=True)
    return table
