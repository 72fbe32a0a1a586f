"""Media files that a table names by a path that is not there: of another machine, in another spelling, or of a split.

A file is the one that is meant if its path ends alike: after `C:\\photos\\` or `/data/upload/`, with a suffix in other
letters (`1.JPG`) or of another kind (`1.jpeg`), with umlauts in another form of Unicode.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_binary, is_string
from polymodal.corpora.formats._data_files import OF_PIXELS, TABLES, DataFiles, place_of, splits_in, suffix_of
from polymodal.corpora.formats._image_files import paths_below
from polymodal.corpora.schemas._media import is_url
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES
from polymodal.errors import UserError
from polymodal.modalities.image import IMAGE_SUFFIXES
from polymodal.modalities.video import SUFFIXES as VIDEO_SUFFIXES

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *AUDIO_SUFFIXES)
IDS = (
    "id", "image_id", "img_id", "image_name", "img_name", "photo_id", "filename", "file_name", "file", "name", "key",
    "image", "img",
)  # fmt: skip
# Other headings of ids, if most of their values differ: id_code, isic_id, patientId, Image Name.
_ID = re.compile(r"(?i:(.*[ _.-])?(id|uid|image|img|file|photo)([ _.-](id|name|code|key))?)|.*[a-z](Id|ID|UID)")
LOOKED_AT = 20  # values of a column
MAX_PATH = 1000  # characters; longer strings are texts
Placed = tuple[pa.Table, tuple[str, ...]]  # with sentences for the user


class NamedFiles:
    """The media files of a data set, by what its tables may call them. root: folder of relative paths."""

    def __init__(self, data: DataFiles, root: Path):
        self.data, self.root = data, root

    def placed(self, table: pa.Table, file: Path) -> Placed:
        """Return the table of a file with the paths of the media that it names.

        Raises UserError for a table of one split, such as `test.csv`, whose images are missing while all that are there
        are in folders of another split.
        """
        if any(is_binary(field.type) or fields_of(field.type) >= {"bytes", "path"} for field in table.schema):
            return table, ()
        split = _split_in(file.name.removesuffix(suffix_of(file)))
        table, by_path = self._with_paths(table, split)
        table, by_id = self._with_images(table, split)
        if split is not None and not (by_path or by_id):
            self._check_split(table, file, split)
        return table, by_path + by_id

    def _with_paths(self, table: pa.Table, split: str | None) -> Placed:
        """Replace paths that are not there by those of files that are, in columns of which no first file is there, nor
        in a folder beside the table, where `media_root` finds it."""
        notes: list[str] = []
        columns = {name: _paths(table.column(name)) for name in table.column_names}
        columns = {name: paths for name, paths in columns.items() if paths}
        for name, paths in columns.items():
            if any(os.path.isfile(self.root / path) for path in paths):
                continue
            folders = self._folders_with(paths)
            of_split = [folder for folder in folders if split is not None and _split_in(folder) == split]
            if folders and not of_split:
                continue
            held = table.column(name).to_pylist()
            places = [
                (f"{of_split[0]}/{path}" if of_split else self.find(path, split, len(columns) == 1)) if path else None
                for path in held
            ]
            if sum(place is not None for place in places) < len(held) / 2:
                continue
            example = next(pair for pair in zip(held, places, strict=True) if pair[1])
            notes.append(f"'{name}' names files by other paths: {example[0]} is read from {example[1]}.")
            merged = pa.array([place or path for path, place in zip(held, places, strict=True)], pa.string())
            table = table.set_column(table.column_names.index(name), name, merged)
        return table, tuple(notes)

    def _with_images(self, table: pa.Table, split: str | None) -> Placed:
        """Add a column `image`, where a column of ids names the image files without their suffix.

        As in competitions whose `labels.csv` has `id,breed` beside `train/ID.jpg`. Of equal names, the image in a
        folder of the table's split is meant, else one that is in no folder of another split than `train`.
        """
        strings = [field.name for field in table.schema if is_string(field.type)]
        others = [name for name in strings if _ID.fullmatch(name) and name.lower() not in IDS]
        names = [name for name in strings if name.lower() in IDS]
        names += [name for name in others if pc.count_distinct(table.column(name)).as_py() > len(table) / 2]
        if not names or not self._paths or any(_paths(table.column(name)) for name in table.column_names):
            return table, ()
        for name in names:
            values = table.column(name).to_pylist()
            places = [self._best_of(self._with_stem(str(value)), split) for value in values]
            if sum(place is not None for place in places) > len(values) / 2:
                images = pa.array(places, pa.string())
                note = f"'{name}' names image files without their suffix; they are the column 'image'."
                note += next(filter(None, map(self._said_of_others, values, places, itertools.repeat(split))), "")
                if "image" in table.column_names:
                    return table.set_column(table.column_names.index("image"), "image", images), (note,)
                return table.append_column("image", images), (note,)
        return table, ()

    def find(self, path: str, split: str | None = None, any_suffix: bool = False) -> str | None:
        """Return the path from the root of the file whose path has the longest equal end; None for none or several.

        A folder in the path that there is must be that of the file.
        """
        parts = PurePosixPath(_plain(path.strip())).parts
        if not parts:
            return None
        named = _spelled(self._by_name.get(parts[-1], []), path, lambda place: place.name)
        if not named and any_suffix:
            named = self._by_stem.get(PurePosixPath(parts[-1]).stem, [])
        if len(parts) > 1 and parts[-2] in self._folders:
            named = [place for place in named if PurePosixPath(_plain(place)).parts[-2:-1] == parts[-2:-1]]
        stated = split or next(filter(None, map(_split_in, parts[:-1])), None)
        named = [place for place in named if stated is None or self._split(place) in (None, stated)]
        if len(named) < 2:
            return named[0] if named else None
        equal = [_equal_end(PurePosixPath(_plain(place)).parts[:-1], parts[:-1]) for place in named]
        best = [place for place, count in zip(named, equal, strict=True) if count == max(equal)]
        return best[0] if len(best) == 1 else None

    @cached_property
    def _paths(self) -> list[str]:
        """Paths from the root: of the media that were named, else of those beside the table."""
        named = [place_of(file, self.data.root).as_posix() for file in self.data.with_suffixes(SUFFIXES)]
        way = os.path.relpath(self.data.root.resolve(), self.root.resolve())
        paths = named or paths_below(self.data.root, SUFFIXES)
        return [os.path.normpath(f"{way}/{path}").replace(os.sep, "/") for path in paths]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _by(self._paths, lambda path: path.name)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _by(self._paths, lambda path: path.stem)

    @cached_property
    def _folders(self) -> set[str]:
        return {part for path in self._paths for part in PurePosixPath(_plain(path)).parts[-2:-1]}

    def _folders_with(self, paths: Sequence[str]) -> list[str]:
        """Return the folders beside the table that have one of these files."""
        try:
            folders = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        except OSError:
            return []
        return [folder for folder in folders if any(os.path.isfile(self.root / folder / path) for path in paths)]

    def _with_stem(self, stem: str) -> list[str]:
        return _spelled(self._by_stem.get(_plain(stem), []), stem, lambda place: place.stem)

    def _best_of(self, places: Sequence[str], split: str | None) -> str | None:
        return min(places, key=lambda place: self._rank(place, split), default=None)

    def _rank(self, place: str, split: str | None) -> tuple[int, bool]:
        order = {split: 0, None: 1, "train": 2}
        return order.get(self._split(place), 3), OF_PIXELS.search(place.rpartition("/")[0]) is not None

    def _said_of_others(self, value: object, place: str | None, split: str | None) -> str:
        """Return a sentence about other files that an id may name as well; "" where there is none."""
        if place is None or len(others := self._with_stem(str(value))) < 2:
            return ""
        rank = self._rank(place, split)
        other = next((one for one in others if one != place and self._rank(one, split) == rank), None)
        return f" Of several files, one is read: for '{value}', {place}, and not {other}." if other else ""

    def _split(self, place: str) -> str | None:
        """Return the split that a folder of a path states, the outermost of several."""
        return next(filter(None, map(_split_in, PurePosixPath(place).parts[:-1])), None)

    def _check_split(self, table: pa.Table, file: Path, split: str) -> None:
        columns = {name: _paths(table.column(name)) for name in table.column_names}
        names_images = any(columns.values()) or any(name.lower() in IDS[:6] for name in columns)
        if not names_images or any(os.path.isfile(self.root / path) for paths in columns.values() for path in paths):
            return
        stated = {self._split(place) for place in self._paths}
        tables = {_split_in(other.name.removesuffix(suffix_of(other))) for other in _tables_beside(file)}
        if stated and None not in stated and not stated & {split, *tables}:
            raise UserError(
                f"{file.name} is of the split '{split}', and all images beside it are of another one, such as "
                f"{self._paths[0]}; put its own images there, in a folder {split}_images, or rename the table if these "
                "are its images."
            )


def _tables_beside(file: Path) -> list[Path]:
    try:
        return [one for one in file.parent.iterdir() if suffix_of(one) in TABLES]
    except OSError:
        return []


def _paths(column: pa.ChunkedArray) -> list[str]:
    """Return the first values of a column of paths of media; none for another column."""
    if not is_string(column.type):
        return []
    some = [value.strip() for value in column[: 2 * LOOKED_AT].to_pylist() if value and value.strip()][:LOOKED_AT]
    paths = [value for value in some if value.lower().endswith(SUFFIXES) and len(value) < MAX_PATH]
    paths = [value for value in paths if not is_url(value)]
    return paths if len(paths) > len(some) / 2 else []


def _by(paths: Sequence[str], key: Callable[[PurePosixPath], str]) -> dict[str, list[str]]:
    by: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by[key(PurePosixPath(_plain(path)))].append(path)
    return dict(by)


def _spelled(places: list[str], name: str, part: Callable[[PurePosixPath], str]) -> list[str]:
    """Return the places of files that are spelled like a name; all where there is none. Ids such as `aB1` and `Ab1` are
    of two files."""
    last = PurePosixPath(name.strip().replace("\\", "/")).name
    return [place for place in places if part(PurePosixPath(place)) == last] or places if len(places) > 1 else places


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path).replace("\\", "/").casefold()


def _equal_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _split_in(name: str) -> str | None:
    """Return the split that the first such word of a name states."""
    return next(iter(splits_in(name)), None)
