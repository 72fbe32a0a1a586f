"""Columns of one image or of several, and the folder that their paths are relative to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polymodal.corpora._types import fields_of, is_binary, is_list, is_string
from polymodal.corpora.schemas._columns import element_type
from polymodal.corpora.schemas._media import kind_of
from polymodal.corpora.schemas._schema import View
from polymodal.modalities.image import IMAGE_SUFFIXES

USUAL = ("images", "image", "image_paths", "image_path", "img", "imgname", "img_path", "picture")
LOOKED_AT = 20  # values of a sample that are opened


def image_lists(view: View) -> str | None:
    """Return the free column of images, or of lists of images: one of a usual name, else the only one."""
    usual = [name for name in view.usual(USUAL) if _holds_images(view, name)]
    others = [name for name in view.free if name not in usual and _holds_images(view, name)]
    return usual[0] if usual else others[0] if len(others) == 1 else None


def image_root(view: View, name: str) -> Path:
    """Return the folder that the paths of a column are relative to: that of the file, or a folder in it or beside it,
    if the first images are only there."""
    paths = [value for value in _elements(view, name) if isinstance(value, str)][:LOOKED_AT]
    if not paths:
        return view.root
    root = view.root.resolve()
    beside = (folder for folder in (root, root.parent) for folder in sorted(folder.iterdir()) if folder.is_dir())
    for folder in (root, *beside):
        if any((folder / path).is_file() for path in paths):
            return view.root if folder == root else folder
    return view.root


def _elements(view: View, name: str) -> list[Any]:
    values = view.sample(name)
    flat = [one for value in values for one in value] if is_list(view.type(name)) else values
    return [one for one in flat if one not in (None, "")]


def _holds_images(view: View, name: str) -> bool:
    kind = element_type(view.type(name))
    if is_list(kind) or not (is_binary(kind) or is_string(kind) or fields_of(kind) >= {"bytes", "path"}):
        return False
    values = _elements(view, name)[:LOOKED_AT]
    return bool(values) and sum(map(_is_image, values)) > len(values) / 2


def _is_image(value: Any) -> bool:
    if isinstance(value, dict):
        value = value["bytes"] or value["path"]
    if isinstance(value, str):
        return len(value) < 1000 and value.lower().endswith(IMAGE_SUFFIXES)
    return kind_of(value) == "image"
