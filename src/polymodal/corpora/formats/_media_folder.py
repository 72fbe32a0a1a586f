"""Folders of media files, by the conventions of `datasets` (ImageFolder, AudioFolder, VideoFolder), and texts, JSON and
other media beside them, as tools for captioning write them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats import csv, json, parquet
from polymodal.corpora.formats._data_files import INSTEAD, DataFiles, Match, place_of, split_folder, splits_of
from polymodal.corpora.formats._delimited import head_lines
from polymodal.corpora.formats._named_files import NamedFiles
from polymodal.corpora.formats._sidecars import (
    MEDIA,
    TEXTS,
    belong_to_others,
    json_beside,
    json_columns,
    media_beside,
    media_columns,
    text_column,
)
from polymodal.corpora.formats._tables import concatenated, without_note
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Modality

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
SIDECARS = TEXTS
LOOKED_AT = 20  # names of metadata whose files are looked for
FILE_NAMES = ("file_name", "filename", "file", "path")  # column of metadata that names the media file
DATA = (*csv.SUFFIXES, *json.SUFFIXES, *parquet.SUFFIXES, ".tar", ".tar.gz")


def matches_folder(data: DataFiles, suffixes: Sequence[str]) -> Match:
    """Match folders whose files are mostly of this kind, with no file of rows but metadata."""
    media = len(data.with_suffixes(suffixes))
    if not media:
        return Match.NO
    described = json_beside(data, suffixes)
    rows = [file for file in data.with_suffixes(DATA) if file.name.lower() not in METADATA]
    if len(rows) > len({*described.values()}) or belong_to_others(data, suffixes):
        return Match.NO
    others = sum(len(files) for suffix, files in data.by_suffix.items() if suffix not in (*suffixes, *SIDECARS, *DATA))
    if media <= others - sum(map(len, media_beside(data, suffixes).values())):
        return Match.NO
    if described:
        return Match.CONTENT
    metadata = (file for file in data.files if file.name.lower() in METADATA)
    return Match.CONTENT if any(map(_has_file_names, metadata)) else Match.SUFFIX


def _has_file_names(file: Path) -> bool:
    """Return whether metadata has a column of file names; other formats have files of the same name."""
    if file.suffix.lower() not in (".csv", ".tsv"):
        return True
    headings = next(iter(head_lines(file, 1)), "").lower().replace('"', "")
    return any(name.strip() in FILE_NAMES or name.endswith("file_name") for name in re.split(r"[,;|\t]", headings))


def read_folder(data: DataFiles, kind: str, suffixes: Sequence[str], modality: Callable[[Path], Modality]) -> Rows:
    """List the media files of a folder with what is known about each.

    The columns are `kind`, a path relative to the folder, and: those of metadata files; else, from files of the same
    name, `text`, the fields of JSON, and other media; and `label`, the name of the folder of each file, where all files
    are in folders below the root, or below folders of splits. Files without a text are skipped where most have one.
    """
    media, root = data.with_suffixes(suffixes), data.root
    metadata = [file for file in data.files if file.name.lower() in METADATA]
    skipped: list[Skipped] = []
    modalities = {kind: modality(root)}
    notes: tuple[str, ...] = ()
    listed = media
    described: dict[Path, Path] = {}
    beside: dict[str, dict[Path, Path]] = {}
    if not (media or metadata):
        raise UserError(f"{data.given[0]} holds {data.summary()}, and no {kind} files ({', '.join(suffixes[:4])} ...).")
    if metadata:
        table, media, notes = _with_metadata(metadata, data, kind, skipped)
        named = {os.path.abspath(file) for file in media}
        unnamed = [file for file in listed if os.path.abspath(file) not in named]
        if unnamed:
            skipped.append(Skipped(len(unnamed), f"is named by no {metadata[0].name}", str(unnamed[0])))
    else:
        paths = {kind: pa.array([place_of(file, root).as_posix() for file in media])}
        beside = media_beside(data, suffixes) if kind in MEDIA else {}
        described = json_beside(data, suffixes)
        modalities |= {other: MEDIA[other][1](root) for other in beside}
        columns = paths | media_columns(data, media, beside) | text_column(data, media, skipped)
        fields = json_columns(media, described, [*columns], skipped)
        folders = class_folders(media, root)
        table = pa.table(columns | folders | fields)
        if folders and not ({"text", "label"} & {*columns, *fields}):
            notes = ("The folders are classes; --text-column label trains on their names as captions.",)
    if table.num_rows == 0:
        raise UserError(f"{root} names no file of the folder in {metadata[0].name}.")
    used = {*listed, *metadata, *described.values(), *(file for files in beside.values() for file in files.values())}
    notes += not_read_beside(data, kind, used, {file.with_suffix("") for file in listed})
    split_of = splits_of(media, root)
    split = np.array([split_of[file] for file in media]) if split_of else None
    return Rows(table, root, modalities, split, keys=kind, skipped=tuple(skipped), notes=notes)


def _with_metadata(
    metadata: Sequence[Path], data: DataFiles, kind: str, skipped: list[Skipped]
) -> tuple[pa.Table, list[Path], tuple[str, ...]]:
    """Return the rows of metadata files, their file names replaced by paths from the root, these files, and sentences
    about names that are written otherwise than those of the files."""
    tables, media = [], []
    root = data.root
    notes: list[str] = []
    for file in metadata:
        read = csv.read_csv if file.suffix.lower() in (".csv", ".tsv") else parquet.read_file
        table, left_out = (json.read_json if file.suffix.lower() == ".jsonl" else read)(file)
        table, sentences = without_note(table)
        notes += sentences
        skipped += left_out
        names = [name for name in (*FILE_NAMES, f"{kind}_file_name") if name in table.column_names]
        if not names:
            raise UserError(f"{file} has no column file_name; it has {', '.join(table.column_names)}.")
        without = table.column(names[0]).null_count
        if without:
            skipped.append(Skipped(without, f"has no {names[0]}", str(file)))
            table = table.filter(table.column(names[0]).is_valid())
        folder = root / place_of(file, root).parent
        written = [str(name) for name in table.column(names[0]).to_pylist()]
        files = [folder / name for name in written]
        if not any(path.is_file() for path in files[:LOOKED_AT]):
            placed = NamedFiles(data, folder)
            places = [placed.find(name, any_suffix=True) for name in written]
            files = [folder / (place or name) for name, place in zip(written, places, strict=True)]
            pairs = (pair for pair in zip(written, places, strict=True) if pair[1])
            notes += [f"{file.name} names {name}, which is read from {place}." for name, place in pairs][:1]
        paths = [Path(os.path.normpath(path)) for path in files]
        inside = [path.is_relative_to(root) for path in paths]
        if not all(inside):
            raise UserError(f"{file} names {files[inside.index(False)]}, which is outside the folder.")
        column = pa.array([path.relative_to(root).as_posix() for path in paths], pa.string())
        table = table.drop_columns([names[0]])
        if kind in table.column_names:
            table = table.drop_columns([kind])
        tables.append(table.add_column(0, kind, column))
        media += paths
    return concatenated(tables), media, tuple(notes)


def not_read_beside(data: DataFiles, kind: str, used: set[Path], stems: set[Path]) -> tuple[str, ...]:
    """Return a sentence about files of the folder that are not read, such as annotations in another form."""
    left: dict[str, list[Path]] = {}
    for suffix, files in data.by_suffix.items():
        rest = [file for file in files if file not in used and not (suffix in TEXTS and file.with_suffix("") in stems)]
        if rest:
            left[suffix or "other"] = rest
    counts = [
        f"{len(files):,} {suffix} file{'s' * (len(files) > 1)} such as {place_of(files[0], data.root).as_posix()}"
        + (f" ({INSTEAD[suffix]})" if suffix in INSTEAD else "")
        for suffix, files in left.items()
    ]
    return (f"Not read beside the {kind} files: {', '.join(counts)}.",) if counts else ()


def class_folders(media: Sequence[Path], root: Path) -> dict[str, pa.Array]:
    """Return the class of each file: its folder, where all files are in folders, and more than one is not a split.

    Folders of splits may be around the classes, or in each of them, as in ModelNet: `airplane/train/`.
    """
    folders = [place_of(file, root).parts[:-1] for file in media]
    places = [next((place for place, name in enumerate(parts) if split_folder(name)), None) for parts in folders]
    if None not in places:  # folders of splits, and not a class that is named like one
        pairs = [(parts, int(place or 0)) for parts, place in zip(folders, places, strict=True)]
        folders = [parts[place + 1 :] for parts, place in pairs]
        if not any(folders):
            folders = [parts[:place] for parts, place in pairs]
    while all(len(parts) > 1 for parts in folders) and len({parts[0] for parts in folders}) == 1:
        folders = [parts[1:] for parts in folders]  # a folder around all classes
    if not all(folders) or len({*folders}) < 2 or len({len(parts) for parts in folders}) > 1:
        return {}
    return {"label": pa.array(["/".join(parts) for parts in folders])}
