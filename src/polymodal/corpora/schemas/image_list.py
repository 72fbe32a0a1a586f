"""Lists of one image, or of none: the image of an example, as TRL's data sets hold it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_list
from polymodal.corpora.schemas._columns import joined
from polymodal.corpora.schemas._image_lists import image_lists, media_root, note_of
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Image

rank = 1
option = ""


def find(view: View) -> Found | None:
    """Find the column of such lists, where there are no other images."""
    name = image_lists(view)
    if (
        name is None
        or not is_list(view.type(name))
        or any(isinstance(kind, Image) for kind in view.modalities.values())
    ):
        return None
    column = view.table.column(name)
    if (pc.max(pc.list_value_length(column)).as_py() or 0) > 1:
        return None
    root = media_root(view, name)
    return Found(
        {name: FoundColumn(Image(root), lambda table: joined(table, (name,), lambda c: _only(c[name])))},
        (name,),
        notes=note_of(view, name, root),
    )


def _only(lists: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    if len(lengths) and lengths.min() == 1:
        return lists.flatten()
    places = np.cumsum(lengths) - lengths
    return lists.flatten().take(pa.array(places, pa.int64(), mask=lengths == 0))
