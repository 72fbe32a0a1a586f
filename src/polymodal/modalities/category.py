"""Class labels: one (Category) or any number (Labels) of a fixed list of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text


@dataclass(frozen=True)
class Category:
    """Column of class labels, stored by name.

    names: class names by index; a built-in corpus fills in those of its rows.
    """

    names: tuple[str, ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.string()

    def decode(self, value: Any) -> int:
        """Return the class index. Raises UnreadableExample for an unknown name."""
        try:
            return self.names.index(value)
        except ValueError as error:
            raise UnreadableExample(f"'{value}' is not one of the {len(self.names)} categories") from error

    def describe(self, value: int) -> str:
        return f"{self.names[value]} (one of {len(self.names)})"

    def plot(self, value: int, axes: Any) -> None:
        write_text(axes, self.names[value], size=10, weight="bold")


@dataclass(frozen=True)
class Labels:
    """Column of sets of labels (multi-label), stored by name. names: as of Category."""

    names: tuple[str, ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.string())

    def decode(self, value: Sequence[str]) -> tuple[int, ...]:
        """Return the sorted class indices. Raises UnreadableExample for an unknown name."""
        unknown = [name for name in value if name not in self.names]
        if unknown:
            raise UnreadableExample(f"'{unknown[0]}' is not one of the {len(self.names)} labels")
        return tuple(sorted(self.names.index(name) for name in value))

    def describe(self, value: tuple[int, ...]) -> str:
        return ", ".join(self.names[index] for index in value) or "none"

    def plot(self, value: tuple[int, ...], axes: Any) -> None:
        write_text(axes, "\n".join(self.names[index] for index in value) or "none", size=9, weight="bold")
