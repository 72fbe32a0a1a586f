"""What a person chose of a catalogue, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text


class Item(NamedTuple):
    """An entry of a catalogue.

    text: what is written of it. facts: what it is linked with, such as its director. labels: kinds that it belongs to.
    """

    title: str
    text: str
    facts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class History:
    """A column of item numbers, oldest first. catalogue: what the numbers stand for."""

    catalogue: tuple[Item, ...] = field(default=(), repr=False)

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.int32())

    def decode(self, value: Sequence[int]) -> Int[np.ndarray, " items"]:
        """Raises UnreadableExample for a number that is not in the catalogue, or comes twice."""
        items = np.array(value, np.int64)
        if len(np.unique(items)) < len(items):
            raise UnreadableExample("an item is twice in the history")
        if len(items) and not (items.min() >= 0 and items.max() < len(self.catalogue)):
            raise UnreadableExample(f"an item of the history is not among the {len(self.catalogue)} of the catalogue")
        return items

    def describe(self, value: Int[np.ndarray, " items"]) -> str:
        shown = ", ".join(self.catalogue[item].title for item in value[-3:].tolist())
        return f"{len(value)} of {len(self.catalogue)} items, at last {shown}" if len(value) else "nothing yet"

    def plot(self, value: Int[np.ndarray, " items"], axes: Any) -> None:
        """The latest ones."""
        write_text(axes, "\n".join(self.catalogue[item].title for item in value[:-9:-1].tolist()) or "nothing yet")
