"""Columns of messages with the images and the system prompts beside them, as one column of conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from polymodal.corpora._types import is_list, is_string
from polymodal.corpora.schemas._columns import joined, of_one, records
from polymodal.corpora.schemas._image_lists import image_lists, media_root, note_of
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Conversations

SYSTEM = ("system", "system_prompt")


def conversations(
    view: View,
    name: str,
    columns: Sequence[str],
    messages: Callable[[Mapping[str, pa.Array]], tuple[pa.Array, pa.Array]],
) -> Found:
    """Return the column `name` of conversations, with the images and the system prompts of each row.

    messages: returns the lists of messages that `columns` hold, and which rows have none.
    """
    system = next((one for one in view.usual(SYSTEM) if is_string(view.type(one))), None)
    images = image_lists(view)
    uses = tuple(one for one in (*columns, images, system) if one is not None)

    def make(stored: Mapping[str, pa.Array]) -> pa.Array:
        lists, missing = messages(stored)
        made = {"messages": lists}
        if images is not None:
            made["images"] = stored[images] if is_list(stored[images].type) else of_one(stored[images])
        if system is not None:
            made["system"] = stored[system]
        return records(made, missing)

    root = view.root if images is None else media_root(view, images)
    notes = note_of(view, images, root) if images is not None else ()
    return Found({name: FoundColumn(Conversations(root), lambda table: joined(table, uses, make))}, uses, notes=notes)
