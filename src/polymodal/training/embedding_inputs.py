"""Values that users give to be embedded: single ones or lists, and one sentence for what is neither."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from torch import Tensor

from polymodal.errors import UserError

# Dimensions of an array that is a single value of a column.
SINGLE_ARRAYS: Mapping[str, tuple[int, ...]] = {"image": (2, 3), "video": (4,), "sound": (1,), "audio": (1,)}
WHAT = {
    "text": "a text (str) or a list of texts",
    "image": "an image (path, bytes, Pillow image or array of uint8, height x width x 3) or a list of images",
}


def as_list(column: str, values: Any) -> list[Any]:
    """Return the values of a column as a list. Raises UserError for no values, or for values of a wrong kind.

    values: one text, path, file in bytes, Pillow image or array, or an iterable of them, such as a column of a frame.
    """
    if isinstance(values, Tensor):
        values = values.numpy(force=True)
    single = isinstance(values, str | bytes | Path | PILImage.Image | Mapping)
    if isinstance(values, np.ndarray):
        single = values.ndim in SINGLE_ARRAYS.get(column, ())
    if not single and not isinstance(values, Iterable):
        raise _wrong(column, values)
    items = [values] if single else list(values)
    if not items:
        raise UserError(f"There is no {column} to embed: the list is empty.")
    for value in items:
        if (column == "text" and not isinstance(value, str)) or value is None or isinstance(value, int | float):
            raise _wrong(column, value)
    return items


def _wrong(column: str, value: Any) -> UserError:
    what = WHAT.get(column, f"a value or a list of values of {column}")
    return UserError(f"{column} takes {what}, not {type(value).__name__}.")
