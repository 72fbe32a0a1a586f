"""Interaction histories: what a user chose of a catalogue, oldest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text


class Item(NamedTuple):
    """Item of a catalogue.

    text: description. facts: linked entities, such as the director. labels: categories.
    """

    title: str
    text: str
    facts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class History:
    """Column of item indices, oldest first. catalogue: the items by index."""

    catalogue: tuple[Item, ...] = field(default=(), repr=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> History:
        """Return the column whose fields a file has, with items as plain tuples."""
        return cls(tuple(Item(*item) for item in values["catalogue"]))

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.int32())

    def decode(self, value: Sequence[int]) -> Int[np.ndarray, " items"]:
        """Decode a history. Raises UnreadableExample for an unknown or repeated item."""
        items = np.array(value, np.int64)
        if len(np.unique(items)) < len(items):
            raise UnreadableExample("an item is twice in the history")
        if len(items) and not (items.min() >= 0 and items.max() < len(self.catalogue)):
            raise UnreadableExample(f"an item of the history is not among the {len(self.catalogue)} of the catalogue")
        return items

    def describe(self, value: Int[np.ndarray, " items"]) -> str:
        titles = ", ".join(self.catalogue[item].title for item in value[-3:].tolist())
        return f"{len(value)} of {len(self.catalogue)} items, at last {titles}" if len(value) else "nothing yet"

    def plot(self, value: Int[np.ndarray, " items"], axes: Any) -> None:
        """Plot the titles of the latest items."""
        write_text(axes, "\n".join(self.catalogue[item].title for item in value[:-9:-1].tolist()) or "nothing yet")
