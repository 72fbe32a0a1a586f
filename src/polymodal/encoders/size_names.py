"""Names of model sizes, without torch, for flags and their help."""

from __future__ import annotations

from typing import Literal, get_args

from polymodal.errors import unknown

Size = Literal["tiny", "small", "base", "large"]
SIZES: tuple[Size, ...] = get_args(Size)


def check_size(name: str) -> Size:
    """Return the size of this name. Raises UserError, with the nearest name, when there is none."""
    for size in SIZES:
        if size == name:
            return size
    raise unknown("size", name, SIZES)
