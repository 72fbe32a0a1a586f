"""Images that annotation files name: found in any folder of the data set, never outside it."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.errors import UserError
from polymodal.files import is_special
from polymodal.modalities.image import IMAGE_SUFFIXES

MAX_DEPTH = 5  # of folders below that of the data set
ANNOTATIONS = ("annotations", "annotation", "labels", "questions", "json", "jsons", "splits")  # folders beside images


class ImageFiles:
    """Images below a folder; folders that are symbolic links are followed."""

    def __init__(self, root: Path):
        self.root = root
        self._beginnings: dict[Path, str] = {}

    @classmethod
    def of(cls, data: DataFiles) -> ImageFiles:
        """Return the images that belong to annotations: in the folder that was named, or in that of the file; where
        that is a folder `annotations`, in the folder around it."""
        folders = [path if path.is_dir() else _around(path.parent) for path in data.given]
        return cls(Path(os.path.commonpath([str(folder.resolve()) for folder in folders])))

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Paths from the root by file name, those of shallow folders first."""
        paths: dict[str, list[str]] = defaultdict(list)
        for path in paths_below(self.root, IMAGE_SUFFIXES):
            paths[path.rpartition("/")[2]].append(path)
        return dict(paths)

    def find(self, name: str, near: Path | None = None) -> str | None:
        """Return the path from the root of the file that an annotation names, by the end of its path; None if there is
        none.

        near: the annotation file; of several images of the name, the one that shares most folders with it is meant,
        and none outside its folder, if that has images. A folder in the name that exists is not replaced by another.
        Raises UserError for a name that leads out of the folder.
        """
        within = self._within(near.parent) if near is not None else ""
        plain = self._by_name.get(name, [])  # a name alone, as most are
        if len(plain) == 1:
            return plain[0] if plain[0].startswith(within) else None
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts:
            return None
        if ".." in parts or parts[0].startswith("/") or ":" in parts[0]:
            self._check_inside(name, near)
        paths = [path for path in self._by_name.get(parts[-1], []) if path.startswith(within)]
        ends = [path for path in paths if PurePosixPath(path).parts[-len(parts) :] == parts]
        if not ends and not (len(parts) > 1 and parts[-2] in self._folders):
            ends = paths
        if len(ends) < 2:
            return ends[0] if ends else None
        return max(ends, key=lambda path: self._nearness(path, near)) if near is not None else ends[0]

    @cached_property
    def _folders(self) -> set[str]:
        """Names of the folders that have images."""
        return {path.split("/")[-2] for paths in self._by_name.values() for path in paths if "/" in path}

    @cached_property
    def _above_images(self) -> set[str]:
        """Paths from the root of the folders that have images below them, other than the root."""
        folders = {path.rpartition("/")[0] for paths in self._by_name.values() for path in paths}
        return {"/".join(folder.split("/")[:depth]) for folder in folders for depth in range(1, folder.count("/") + 2)}

    def _within(self, folder: Path) -> str:
        """Return the beginning of the paths of images that the annotations in a folder may name."""
        if folder not in self._beginnings:
            around = _around(folder)
            inside = around.relative_to(self.root).as_posix() if around.is_relative_to(self.root) else "."
            self._beginnings[folder] = f"{inside}/" if inside in self._above_images else ""
        return self._beginnings[folder]

    def _nearness(self, path: str, near: Path) -> tuple[int, int]:
        """Return how many folders a path shares with a file from the root on, and from the end back: the image of
        `Annotations/val/1.xml` is `Images/val/1.jpg`."""
        folders, others = (self.root / path).parent.parts, near.parent.resolve().parts
        shared, ends = (
            sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
            for one, other in ((folders, others), (folders[::-1], others[::-1]))
        )
        return shared, ends

    def find_any(self, names: Iterable[str], near: Path | None = None) -> str | None:
        """Return the path of the first name that exists."""
        return next((path for path in (self.find(name, near) for name in names) if path), None)

    def _check_inside(self, name: str, near: Path | None) -> None:
        start = near.parent if near is not None else self.root
        if not Path(os.path.normpath(start.resolve() / name)).is_relative_to(self.root):
            raise UserError(f"{near or self.root} names the image {name}, which is outside the folder {self.root}.")


def missing_images(count: int, total: int, example: str, files: ImageFiles, file: Path) -> tuple[Skipped, ...]:
    """Return the entry for rows whose image is not there. Raises UserError where no image is."""
    if count == total:
        raise UserError(
            f"{file} names {example}, and no image of it is in {files.root}; put the images there, or name the folder "
            "that has both with --data FOLDER."
        )
    return (Skipped(count, f"names an image that is not in {files.root}", example),) if count else ()


def _around(folder: Path) -> Path:
    resolved = folder.resolve()
    return resolved.parent if resolved.name.lower() in ANNOTATIONS else resolved


def paths_below(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths of files from the root, folder by folder, the shallow ones first."""
    folders, visited = [""], {os.path.realpath(root)}
    for _ in range(MAX_DEPTH + 1):
        below: list[str] = []
        for folder in folders:
            try:
                entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.lower().endswith(suffixes):
                    if not is_special(entry.path):
                        yield path
                elif entry.is_dir() and (real := os.path.realpath(entry.path)) not in visited:
                    visited.add(real)
                    below.append(path)
        folders = below
