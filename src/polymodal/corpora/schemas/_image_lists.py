"""Columns of one image, sound or clip, or of several images, and the folder that their paths are relative to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from polymodal.corpora._types import fields_of, is_binary, is_list, is_string
from polymodal.corpora.formats._data_files import OF_PIXELS, splits_in
from polymodal.corpora.schemas._columns import element_type
from polymodal.corpora.schemas._media import holds, kind_of
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Audio, Video
from polymodal.modalities.image import IMAGE_SUFFIXES

USUAL = ("images", "image", "image_paths", "image_path", "img", "imgname", "img_path", "picture")
LOOKED_AT = 20  # values of a sample that are opened


def image_lists(view: View) -> str | None:
    """Return the free column of images, or of lists of images: one of a usual name, else the only one."""
    usual = [name for name in view.usual(USUAL) if holds_images(view, name)]
    others = [name for name in view.free if name not in usual and holds_images(view, name)]
    return usual[0] if usual else others[0] if len(others) == 1 else None


def media_root(view: View, name: str) -> Path:
    """Return the folder that the paths of a column are relative to: that of the file, or a folder in it or beside it,
    if the first files are only there: the one with most of them, of equal ones not that of a test set. A folder beside
    it, which may be another data set, has to have all of these, and those in it no images at all."""
    paths = [value for value in _elements(view, name) if isinstance(value, str)][:LOOKED_AT]
    if not paths:
        return view.root
    root = view.root.resolve()
    if any(os.path.isfile(root / path) for path in paths):
        return view.root
    if inside := _folders_with(root, paths):
        return inside[0]
    beside = [] if any(map(_has_images, _folders_in(root))) else _folders_in(root.parent)
    for folder in beside:
        if all(os.path.isfile(folder / path) for path in paths):
            return folder
    return view.root


def only_media(view: View, kind: str, suffixes: tuple[str, ...], modality: type[Audio | Video]) -> Found | None:
    """Find the named or the first column of sounds or clips, unless a format states one. modality: its class."""
    if view.named is not None and not holds(view, view.named, kind, suffixes):
        raise view.refuse(kind)
    if any(isinstance(one, modality) for one in view.modalities.values()):
        return None
    names = [view.named] if view.named else [name for name in view.free if holds(view, name, kind, suffixes)]
    if not names:
        return None
    root = media_root(view, names[0])
    return Found({names[0]: FoundColumn(modality(root=root))}, (names[0],), notes=note_of(view, names[0], root))


def note_of(view: View, name: str, root: Path) -> tuple[str, ...]:
    """Return a sentence about the folder of the paths of a column, where it is not that of the file; and about another
    folder that has files of these names, too, unless they are images of masks or of a test set."""
    if root == view.root:
        return ()
    paths = [value for value in _elements(view, name) if isinstance(value, str)][:LOOKED_AT]
    sentence = f"Relative paths in '{name}' start at {root}."
    inside = _folders_with(view.root.resolve(), paths)
    for other in inside[1:]:
        if root == inside[0] and _rank(other) == _rank(root):
            also = (
                f"There are files of these names in {other.name}, too, which are not taken: give paths with the folder."
            )
            return (f"{sentence} {also}",)
    return (sentence,)


def _folders_with(root: Path, paths: list[str]) -> list[Path]:
    """Return the folders in a folder that have most of these files, those of images before those of masks."""
    counts = [(sum(os.path.isfile(folder / path) for path in paths), folder) for folder in _folders_in(root)]
    largest = max((count for count, _ in counts), default=0)
    return sorted((folder for count, folder in counts if count == largest), key=_rank) if largest else []


def _rank(folder: Path) -> tuple[bool, bool]:
    return _is_of_a_test_set(folder), OF_PIXELS.search(folder.name) is not None


def _is_of_a_test_set(folder: Path) -> bool:
    """Return whether a folder is one such as `test_images`, whose files may be named like those of `train_images`."""
    return any(split != "train" for split in splits_in(folder.name))


def _has_images(folder: Path) -> bool:
    with suppress(OSError):
        return any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in os.scandir(folder))
    return False


def _folders_in(folder: Path) -> Iterator[Path]:
    with suppress(OSError):  # it may not be listed, or not exist
        yield from sorted(one for one in folder.iterdir() if one.is_dir())


def _elements(view: View, name: str) -> list[Any]:
    values = view.sample(name)
    flat = [one for value in values for one in value] if is_list(view.type(name)) else values
    return [one for one in flat if one not in (None, "")]


def holds_images(view: View, name: str) -> bool:
    """Return whether most values of a column, or of its lists, are images."""
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
