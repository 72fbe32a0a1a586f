"""The interface of modalities, and storage of arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from polymodal.errors import UnreadableExample, check_resources
from polymodal.files import open_regular


class Modality(Protocol):
    """Interface of a modality: how values are stored in Arrow, decoded, and displayed.

    Implementations are frozen dataclasses, so that a column can add metadata of its values, such as units or names.
    """

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of a column of built-in corpora."""
        ...

    def decode(self, value: Any) -> Any:
        """Decode a stored value to the value that methods use. Raises UnreadableExample with the reason."""
        ...

    def describe(self, value: Any) -> str:
        """Return a short text: shape, length, or the value itself."""
        ...

    def plot(self, value: Any, axes: Any) -> None:
        """Plot a decoded value on matplotlib axes."""
        ...


def bytes_or_path(value: Any) -> Any:
    """Return the bytes of a `{"bytes", "path"}` record, as `datasets` stores files, or else its path; other values as
    they are."""
    return (value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value


def read_file(value: Any, root: Path | None, kind: str) -> Any:
    """Return the content of a file that is stored as a path or a record (`bytes_or_path`); other values as they are.

    root: folder of relative paths. Raises UnreadableExample, which names the `kind` of the file, such as an image.
    """
    value = bytes_or_path(value)
    if isinstance(value, str | Path):
        path = (root or Path()) / value
        try:
            with open_regular(path) as file:
                return file.read()
        except (OSError, ValueError) as error:
            check_resources(error)
            reason = getattr(error, "strerror", None) or error
            raise UnreadableExample(f"the {kind} {path} cannot be read: {reason}") from error
    return value


def write_text(axes: Any, text: str, size: float = 8, width: int = 34, lines: int = 9, **style: Any) -> None:
    """Write wrapped text in the upper left of empty axes, truncated to `lines` lines."""
    import textwrap

    wrapped = [piece for line in text.splitlines() for piece in textwrap.wrap(line, width) or [""]]
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], "..."]
    axes.axis("off")
    escaped = "\n".join(wrapped).replace("$", r"\$")
    axes.text(0, 1, escaped, va="top", ha="left", fontsize=size, transform=axes.transAxes, **style)


def to_npy(array: np.ndarray) -> bytes:
    """Serialize an array in NumPy's .npy format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(value: bytes, dimensions: int) -> np.ndarray:
    """Deserialize an array of `to_npy`. Raises UnreadableExample for other data, or another number of dimensions."""
    try:
        array = np.load(io.BytesIO(value), allow_pickle=False)
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise UnreadableExample("the array is not in NumPy's .npy format") from error
    if array.ndim != dimensions:
        raise UnreadableExample(f"the array has {array.ndim} dimensions, not {dimensions}")
    return array
