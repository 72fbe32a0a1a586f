"""What describes a data set of YOLO: `data.yaml`, files of class names, and lists of the images of splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from polymodal.corpora.formats._data_files import SPLIT_NAMES, DataFiles, place_of, splits_of
from polymodal.corpora.formats._delimited import head_lines, lines_of
from polymodal.corpora.formats._named_files import NamedFiles
from polymodal.errors import UserError
from polymodal.modalities.image import IMAGE_SUFFIXES

YAML = (".yaml", ".yml")
USUAL = ("data", "dataset")  # names of YAML files
MAX_BYTES = 1_000_000  # of a YAML file
CLASSES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
LISTS = {
    f"{name}{year}.txt": split
    for name, split in SPLIT_NAMES.items()
    for year in ("", "2014", "2017", "2007", "2012")
}  # fmt: skip


@dataclass(frozen=True)
class YoloSettings:
    """Names of classes by number, the folders and lists of splits, and the length of the keypoints of a line.

    source: the file of the names; None where there is none. keypoints: 0 where `kpt_shape` is not stated.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    source: Path | None = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path = Path()
    keypoints: int = 0


def settings_of(data: DataFiles, named: Path | None = None) -> YoloSettings:
    """Return what the YAML file of a data set states, or the names in `classes.txt`, `obj.names` and others.

    named: the YAML file that the user named. Raises UserError for a damaged YAML file, and for several files of which
    none is named, none is nearer to the folder of the data, and whose names differ.
    """
    stated: list[YoloSettings] = []
    for file in [named] if named else _yaml_files(data):
        try:
            held = _load(file)
        except UserError:
            if file == named or (_is_usual(file) and not stated):
                raise
            continue  # of another program
        if isinstance(held, dict) and "names" in held and not (stated and _is_later(file, stated[0].source)):
            stated.append(_of_yaml(file, held))
    if not stated:
        files = [file for file in data.files if file.name.lower() in CLASSES or file.suffix.lower() == ".names"]
        files.sort(key=lambda file: (len(file.parts), file))
        alike = [file for file in files if len(file.parts) == len(files[0].parts) and file.name == files[0].name]
        stated = [YoloSettings(_names_in(file), file, folder=data.root) for file in alike]
    other = next((one for one in stated if one.names != stated[0].names), None)
    if other is not None:
        raise UserError(
            f"{stated[0].source} and {other.source} state other names of classes; name the folder of one data set with "
            "--data FOLDER, or one YAML file."
        )
    return stated[0] if stated else YoloSettings(folder=data.root)


def _names_in(file: Path) -> dict[int, str]:
    names = [line.strip() for line in lines_of(file)]
    while names and not names[-1]:
        names.pop()
    return dict(enumerate(names))


def _is_usual(file: Path) -> bool:
    return file.stem.lower() in USUAL


def _is_later(file: Path, first: Path | None) -> bool:
    """Return whether a YAML file is deeper than the first one, or named less usually."""
    return first is not None and (len(file.parts), not _is_usual(file)) > (len(first.parts), not _is_usual(first))


def is_settings(file: Path) -> bool:
    """Return whether a file is the YAML file of a data set of YOLO."""
    try:
        held = _load(file) if file.suffix.lower() in YAML else None
    except UserError:
        return False
    return isinstance(held, dict) and "names" in held and any(name in held for name in (*SPLIT_NAMES, "path", "nc"))


def folder_of(file: Path) -> Path:
    """Return the folder of the data set that a YAML file describes: `path`, from its own folder. Raises UserError for
    one that is elsewhere."""
    held = _load(file)
    stated = str(held.get("path") or "") if isinstance(held, dict) else ""
    around = file.parent.resolve()
    folder = (around / stated).resolve()
    if folder.is_dir() and folder.is_relative_to(around):
        return folder
    lists = [str(held.get(name) or "") for name in SPLIT_NAMES] if isinstance(held, dict) else []
    if any(entry and (around / entry.removeprefix("../")).exists() for entry in lists):
        return around  # `path` is that of another machine
    raise UserError(f"{file} describes images in {stated or around}; name the folder of the images with --data FOLDER.")


def _yaml_files(data: DataFiles) -> list[Path]:
    """Return the YAML files in the folder of the data and in the folders in it; where it has none, those beside it."""
    given = [path for path in data.given if path.suffix.lower() in YAML and path.is_file()]
    within = [file for pattern in ("*", "*/*") for file in sorted(data.root.glob(pattern))]
    usual = [data.root.parent / f"{name}{suffix}" for name in USUAL for suffix in YAML]
    files = [file for file in within if file.suffix.lower() in YAML and file.is_file()]
    files.sort(key=lambda file: (len(file.parts), not _is_usual(file)))
    return given + (files or [file for file in usual if file.is_file()])


def _load(file: Path) -> Any:
    """Return the value of a YAML file, all scalars as text: a class may be called `no`, which YAML takes for False."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return None
        return yaml.load(file.read_bytes(), Loader=yaml.BaseLoader)  # makes lists, mappings and texts only
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error


def _of_yaml(file: Path, held: Mapping[str, Any]) -> YoloSettings:
    names = held["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    try:
        by_number = {int(number): name for number, name in pairs}
    except ValueError:
        by_number = {}
    if not by_number or not all(isinstance(name, str) for name in by_number.values()):
        raise UserError(f"`names` of {file} is neither a list of class names nor a mapping of numbers to them.")
    splits: dict[str, tuple[str, ...]] = {}
    for key, split in SPLIT_NAMES.items():
        entry = held.get(key)
        listed = [entry] if isinstance(entry, str) else entry if isinstance(entry, list) else []
        entries = tuple(one for one in listed if isinstance(one, str) and one)
        if entries:
            splits[split] = (*splits.get(split, ()), *entries)
    return YoloSettings(by_number, file, splits, file.parent, _keypoints(held.get("kpt_shape")))


def _keypoints(shape: Any) -> int:
    """Return how many numbers the keypoints of a line are, by `kpt_shape: [number, 2 or 3]`."""
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(one, str) and one.isdigit() for one in shape):
        return int(shape[0]) * int(shape[1])
    return 0


def split_lists(data: DataFiles) -> list[tuple[Path, str]]:
    """Return files such as `train.txt` whose first line names an image, with their splits."""
    files = [(file, LISTS[file.name.lower()]) for file in data.files if file.name.lower() in LISTS]
    return [pair for pair in files if any(line.lower().endswith(IMAGE_SUFFIXES) for line in head_lines(pair[0], 1))]


def yolo_splits(data: DataFiles, settings: YoloSettings, paths: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return the split of each image, a path from the root: of the YAML file, else of lists, else of folders."""
    splits = dict(_listed(data, settings, paths))
    lists = [] if splits else split_lists(data)
    named = NamedFiles(data, data.root)
    for file, split in lists:
        for path in _places(named, lines_of(file)):
            splits.setdefault(path, split)
    stated = splits_of([data.root / path for path in paths], data.root) or {}
    of_images = [splits.get(path) or stated.get(data.root / path) for path in paths]
    by = settings.source.name if splits and not lists and settings.source else lists[0][0].name if splits else ""
    return of_images, [f"Splits are those of {by}."] if by and len({*of_images}) > 1 else []


def _listed(data: DataFiles, settings: YoloSettings, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the images of the splits of the YAML file. Of an image in several, the first counts, in the order `train`,
    `validation`, `test`."""
    named = NamedFiles(data, data.root)
    within = place_of(settings.folder / "x", data.root).parent.as_posix()
    files = {place_of(file, data.root).as_posix(): file for file in data.with_suffixes((".txt",))}
    for split in ("test", "validation", "train"):
        for entry in settings.splits.get(split, ()):
            parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in ("..", ".", "/")]
            # The folder as the file names it, then without the folders around it on the machine where it was written.
            ends = ["/".join(parts[start:]) for start in range(len(parts))]
            tried = [f"{within}/{end}" for end in ends if within != "."] + ends
            listing = next((files[end] for end in tried if end in files), None)
            if listing is not None:
                yield from ((path, split) for path in _places(named, lines_of(listing)))
                continue
            folder = next((end for end in tried if any(path.startswith(f"{end}/") for path in paths)), None)
            if folder is not None:
                yield from ((path, split) for path in paths if path.startswith(f"{folder}/"))


def _places(named: NamedFiles, lines: Iterable[str]) -> Iterator[str]:
    """Yield the paths from the root of the images that the lines of a list name."""
    for line in lines:
        if line.strip() and (path := named.find(line.strip())):
            yield path
