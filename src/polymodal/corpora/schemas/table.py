"""Table rows: the numeric and categorical columns that are left beside an image, a sound, a label or the like."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.corpora.schemas._tabular import categories, is_numeric, levels, names_a_row, numbers
from polymodal.modalities import Table, Text

rank = 4
option = ""
NAMES = ("table", "table_row", "measured")  # of the column, the first that is free


def find(view: View) -> Found | None:
    """Find all numeric and categorical columns, as one column of table rows; nothing beside texts alone.

    Ids, addresses, free texts, constants and row numbers are left out.
    """
    if all(isinstance(kind, Text) for kind in view.modalities.values()) or any(
        isinstance(kind, Table) for kind in view.modalities.values()
    ):
        return None
    free = [name for name in view.free if not names_a_row(name)]
    numeric = tuple(name for name in free if is_numeric(view, name))
    categorical: dict[str, tuple[str, ...]] = {}
    for name in free:
        values = None if name in numeric else categories(view, name)
        if values is not None:
            categorical[name] = values
    column = next((name for name in NAMES if name not in view.table.column_names), None)
    if not (numeric or categorical) or column is None:
        return None

    def rows(table: pa.Table) -> pa.Array:
        cells = [numbers(table.column(name)) for name in numeric]
        for name, values in categorical.items():
            plain = levels(table.column(name))
            is_value = pc.is_in(plain, pa.array(values, pa.string()))
            cells.append(pc.if_else(is_value, plain, pa.scalar(None, pa.string())))
        return pa.StructArray.from_arrays([cell.combine_chunks() for cell in cells], [*numeric, *categorical])

    modality = Table(dict.fromkeys(numeric, ""), categorical)
    return Found({column: FoundColumn(modality, rows)}, (*numeric, *categorical))
