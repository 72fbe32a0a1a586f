"""What every modality says of itself, and how arrays are stored."""

from __future__ import annotations

import io
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from polymodal.errors import UnreadableExample


class Modality(Protocol):
    """A kind of value: how it is stored in Arrow, decoded, and shown to a person.

    Instances are frozen dataclasses, so that a column can say more of its values, such as units or names.
    """

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of a column of built-in corpora."""
        ...

    def decode(self, value: Any) -> Any:
        """A stored value to the value that methods work with. Raises UnreadableExample with the reason."""
        ...

    def describe(self, value: Any) -> str:
        """A decoded value in a few words: its shape, its length, or itself."""
        ...

    def plot(self, value: Any, axes: Any) -> None:
        """Show a decoded value on matplotlib axes."""
        ...


def write_text(axes: Any, text: str, size: float = 8, width: int = 34, lines: int = 9, **style: Any) -> None:
    """Wrapped text in the upper left of empty axes; what does not fit is cut."""
    import textwrap

    wrapped = [piece for line in text.splitlines() for piece in textwrap.wrap(line, width) or [""]]
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], "..."]
    axes.axis("off")
    shown = "\n".join(wrapped).replace("$", r"\$")
    axes.text(0, 1, shown, va="top", ha="left", fontsize=size, transform=axes.transAxes, **style)


def to_npy(array: np.ndarray) -> bytes:
    """NumPy's own format, which knows its type and shape."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(value: bytes, dimensions: int) -> np.ndarray:
    """The array of `to_npy`. Raises UnreadableExample for anything else, or another number of dimensions."""
    try:
        array = np.load(io.BytesIO(value), allow_pickle=False)
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise UnreadableExample("the array is not in NumPy's .npy format") from error
    if array.ndim != dimensions:
        raise UnreadableExample(f"the array has {array.ndim} dimensions, not {dimensions}")
    return array
