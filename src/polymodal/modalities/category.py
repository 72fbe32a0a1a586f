"""Category labels: one of a fixed list of names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polymodal.modalities.image import UnreadableExample


@dataclass(frozen=True)
class Category:
    """A column of labels, stored by name.

    names: every label, in the order of their numbers.
    """

    names: tuple[str, ...]

    def decode(self, value: Any) -> int:
        """The number of the label. Raises UnreadableExample for a name that is not in the list."""
        try:
            return self.names.index(value)
        except ValueError as error:
            raise UnreadableExample(f"'{value}' is not one of the {len(self.names)} categories") from error
