"""What the user named with `--data`: the files that exist there, in a stable order."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

from polymodal.corpora._cache import cache_directory
from polymodal.errors import UserError, missing
from polymodal.files import SPECIAL, is_special

# Usual spellings of splits, as `datasets` recognizes them in file and folder names.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testdev": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Folders of what lies beside the images under the same names.
OF_PIXELS = re.compile(r"mask|depth|segment|trimap|thumb|heat.?map|annotation", re.IGNORECASE)
MAX_TABLES = 1000  # text files of a folder, until they are taken for those of an image each
_SPLIT_FOLDER = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?:\d{{4}})?", re.IGNORECASE)
_SPLIT = re.compile(rf"(?:^|[._\-/ ])({'|'.join(SPLIT_NAMES)})(?:\d{{4}})?(?=[._\-/ ]|$)", re.IGNORECASE)
TABLES = (
    ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".feather", ".arrow",
    ".csv.gz", ".tsv.gz", ".json.gz", ".jsonl.gz", ".ndjson.gz",
)  # fmt: skip
# Files of other programs, and how what is in them can be read.
INSTEAD = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), "save the sheet as CSV in UTF-8"),
    ".xml": "convert boxes to the XML of Pascal VOC or to the JSON of COCO",
}
_SAMPLE = re.compile(r"(.+)[._-](?:small|sample|subset|mini|tiny|toy|preview)", re.IGNORECASE)
# Files that accompany data and are none: documentation, metadata of tools, checksums.
_ACCOMPANYING = re.compile(
    r"(readme|license|licence)(\.\w+)?$|dataset_infos?\.json$|state\.json$|(.*[-_])?(wids([-_]meta)?|sizes)\.json$|\.gitattributes|.*_stats\.json$|sample[-_]?submission\.csv(\.gz)?$|.*\.(md5|sha256|log|yaml|yml|md)$",
    re.IGNORECASE,
)


class Match(IntEnum):
    """How sure a format is that files are its own.

    SUFFIX: by names of files. CONTENT: by what is written in them; it wins over names.
    """

    NO = 0
    SUFFIX = 1
    CONTENT = 2


@dataclass(frozen=True)
class DataFiles:
    """Files of one data set.

    given: what the user named. root: folder that contains all of it. files: all regular files, sorted by path; hidden
    ones, those of macOS archives (`._name`, `__MACOSX`) and documentation are left out. samples: tables that are left
    out, as they are samples of others beside them (`ratings_small.csv` of `ratings.csv`), unless a path names them.
    """

    given: tuple[Path, ...]
    root: Path
    files: tuple[Path, ...]
    samples: tuple[Path, ...] = ()

    @classmethod
    def of(cls, given: Sequence[str | Path]) -> DataFiles:
        """Collect the files. A path that exists is never a pattern; others may have `*`, `?`, `[...]`, `{000..123}`.

        Raises UserError for a path that does not exist, and for an empty folder.
        """
        paths = [path for one in given for path in _expanded(str(one))]
        files = sorted({os.path.abspath(file): file for path in reversed(paths) for file in _files(path)}.values())
        samples = tuple(file for file in files if _is_sample(file) and file not in paths)
        folders = [path if path.is_dir() else path.parent for path in paths]
        root = Path(os.path.commonpath([str(folder.resolve()) for folder in folders]))
        if not files:
            raise UserError(f"The folder {paths[0]} holds nothing that can be read. {_EXPECTED}")
        return cls(tuple(paths), root, tuple(file for file in files if file not in samples), samples)

    @cached_property
    def by_suffix(self) -> dict[str, list[Path]]:
        """Files by lower-case suffix, `.nii.gz` as one."""
        files = defaultdict(list)
        for file in self.files:
            files[suffix_of(file)].append(file)
        return dict(files)

    def with_suffixes(self, suffixes: Sequence[str]) -> list[Path]:
        """Return the files with one of these suffixes, sorted by path."""
        return sorted(file for suffix in suffixes for file in self.by_suffix.get(suffix, ()))

    @cached_property
    def crowded(self) -> frozenset[Path]:
        """Text files of folders that have many: those of an image or a sound each, which are no tables. Formats that
        look for tables by content do not open them."""
        texts = self.by_suffix.get(".txt", ())
        counts = Counter(map(os.path.dirname, texts))
        return frozenset(file for file in texts if counts[os.path.dirname(file)] > MAX_TABLES)

    @property
    def name(self) -> str:
        """Name of the data set: of the path, without its suffix."""
        first = self.given[0]
        return (self.root if len(self.given) > 1 else first).resolve().name.removesuffix(suffix_of(first)) or "data"

    def summary(self) -> str:
        """Return how many files of which kind there are, for messages."""
        counts = sorted(self.by_suffix.items(), key=lambda item: -len(item[1]))
        return ", ".join(f"{len(files):,} {suffix or 'without suffix'}" for suffix, files in counts[:5])


def _is_sample(file: Path) -> bool:
    """Return whether a table is named like a sample of a table beside it."""
    suffix = suffix_of(file)
    match = _SAMPLE.fullmatch(file.name.removesuffix(suffix))
    return match is not None and suffix in TABLES and (file.parent / f"{match[1]}{suffix}").is_file()


def is_accompanying(name: str) -> bool:
    """Return whether a file of this name is documentation or metadata, not data."""
    return _ACCOMPANYING.match(name) is not None


_EXPECTED = "`polymodal data --help` lists the formats that are read."


def suffix_of(path: Path) -> str:
    """Return the lower-case suffix; both of them for compressed files such as `.nii.gz` and `.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] in ([".gz"], [".bz2"], [".zst"]) else "".join(suffixes[-1:])


def splits_of(files: Sequence[Path], root: Path) -> dict[Path, str] | None:
    """Return the split that the name or a folder of each file states; None unless all of them do, one being train.

    `train-00000-of-00004.parquet`, `val2014/…` and `data/test/…` state one, by any of `SPLIT_NAMES`. Where each file is
    in a folder that is named like a split, the outermost of these counts: `test/bullet_train/1.jpg` is of `test`.
    """
    places = [place_of(file, root) for file in files]
    folders = [next(filter(None, map(split_folder, place.parts[:-1])), None) for place in places]
    for stated in (folders, [split_of(file, root) for file in files]):
        if all(stated) and "train" in stated and len({*stated}) > 1:
            return {file: str(split) for file, split in zip(files, stated, strict=True)}
    return None


def split_folder(name: str) -> str | None:
    """Return the split that a folder is named like, as `train` and `val2017` are; None for another folder."""
    match = _SPLIT_FOLDER.fullmatch(name)
    return SPLIT_NAMES[match[1].lower()] if match else None


def splits_in(name: str) -> list[str]:
    """Return the splits that the words of a name state, in their order: `test_images`, `my-train-captions`."""
    return [SPLIT_NAMES[word] for word in re.split(r"[\W_\d]+", name.lower()) if word in SPLIT_NAMES]


def place_of(file: Path, root: Path) -> Path:
    """Return the path of a file below a folder; of one that is elsewhere, its name. Symbolic links stay as they are."""
    absolute = Path(os.path.abspath(file))
    if not absolute.is_relative_to(root):
        absolute = file.parent.resolve() / file.name
    return absolute.relative_to(root) if absolute.is_relative_to(root) else Path(file.name)


def split_of(file: Path, root: Path) -> str | None:
    """Return the split that the name or a folder of a file states, the last one of several; None where neither does."""
    names = _SPLIT.findall(place_of(file, root).as_posix())
    return SPLIT_NAMES[names[-1].lower()] if names else None


def _expanded(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.exists():
        return [path]
    matches = [match for pattern in braces(str(path)) for match in sorted(_matches(pattern))]
    if not matches:
        raise missing("file or folder", given)
    return matches


def braces(pattern: str) -> Iterator[str]:
    """Expand `{000..123}` (webdataset) and `{a,b}`."""
    group = re.search(r"\{([^{}]+)\}", pattern)
    if not group:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", group[1])
    if numbers:
        first, last = numbers.groups()
        inner = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        inner = group[1].split(",")
    for choice in inner:
        yield from braces(pattern[: group.start()] + choice + pattern[group.end() :])


def _matches(pattern: str) -> Iterator[Path]:
    import glob

    yield from (Path(match) for match in glob.iglob(pattern, recursive=True))


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        _check_special(path)
        yield path
        return
    visited = {str(cache_directory().resolve()), os.path.realpath(path)}
    start = path if Path(os.path.abspath(path)) == path.resolve() else path.resolve()
    for folder, folders, names in os.walk(start, followlinks=True):
        below = []
        for name in sorted(name for name in folders if not name.startswith((".", "__MACOSX"))):
            real = os.path.realpath(Path(folder, name))
            if real not in visited:  # a link may lead back
                visited.add(real)
                below.append(name)
        folders[:] = below
        for name in names:
            if not name.startswith(".") and not is_accompanying(name):
                _check_special(Path(folder, name))
                yield Path(folder, name)


def _check_special(file: Path) -> None:
    if is_special(file):
        raise UserError(f"{file} cannot be read: {SPECIAL}; remove it, or name other data.")
