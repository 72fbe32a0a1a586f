"""Scans in NIfTI files: one file a scan, or one for each contrast, as in BraTS and BIDS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match, place_of, splits_of
from polymodal.corpora.formats._delimited import read_delimited
from polymodal.corpora.formats._media_folder import class_folders
from polymodal.corpora.rows import Rows
from polymodal.errors import UnreadableExample, UserError, needs
from polymodal.modalities import Volume
from polymodal.modalities.modality import to_npy

description = "a folder of NIfTI scans (.nii, .nii.gz), a file for each scan or for each contrast"
SUFFIXES = (".nii", ".nii.gz")
CONTRASTS = (
    "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "t2star", "flair", "pd", "pdw", "dwi", "adc", "swi",
    "ct", "pet", "mra",
)  # fmt: skip
MASKS = ("seg", "mask", "label", "labels", "dseg", "gt")  # files that are no scans
SINGLE = "scan"  # contrast of files that name none


def matches(data: DataFiles) -> Match:
    """Match folders with NIfTI files; BIDS has tables and JSON beside them."""
    files = data.with_suffixes(SUFFIXES)
    return Match.CONTENT if files and len(files) >= len(data.files) / 4 else Match.NO


def read(data: DataFiles) -> Rows:
    """Convert the scans, in the nearest canonical orientation (right, anterior, superior), and list them.

    A row is a scan with all of its contrasts. Classes are folders; `participants.tsv` gives further columns. Raises
    UserError without nibabel, or where no file can be read.
    """
    try:
        import nibabel  # noqa: F401
    except ImportError as error:
        raise needs("nibabel", "corpora", "Reading NIfTI files") from error
    scans, masks = _scans(data)
    if not scans:
        raise UserError(f"{data.given[0]} has masks but no scan in NIfTI files.")
    contrasts = tuple(dict.fromkeys(name for files in scans.values() for name in files))
    contrasts = tuple(sorted(contrasts))
    files = [file for of_scan in scans.values() for file in of_scan.values()]
    table, skipped = cached_table("nifti", files, lambda: _convert(scans, contrasts))
    if table.num_rows == 0:
        raise UserError(f"None of the {len(scans):,} scans can be read: {skipped[0].example}.")
    kept = [str(name) for name in table.column("file").to_pylist()]
    places = [data.root / name for name in kept]
    classes = class_folders(places, data.root)
    classes = {name: values for name, values in classes.items() if len(values.unique()) <= len(values) / 2}
    columns = classes | _participants(data, kept)  # a folder for each scan is no class
    for name, values in columns.items():
        table = table.append_column(name, values)
    stated = splits_of(files, data.root)
    split = np.array([stated[next(iter(scans[name].values()))] for name in kept], dtype=object) if stated else None
    if masks:
        skipped = (*skipped, Skipped(len(masks), "is a mask", str(masks[0])))
    return Rows(table, data.root, {"volume": Volume(contrasts)}, split, keys="file", skipped=skipped)


def _scans(data: DataFiles) -> tuple[dict[str, dict[str, Path]], list[Path]]:
    """Return the file of each contrast by scan, and the masks. The name of a scan is its path without the contrast."""
    scans: dict[str, dict[str, Path]] = {}
    masks = []
    for file in data.with_suffixes(SUFFIXES):
        place = place_of(file, data.root)
        stem = re.sub(r"\.nii(\.gz)?$", "", place.name, flags=re.IGNORECASE)
        before, contrast = re.fullmatch(r"(?:(.*)[_\-.])?(.*?)", stem).groups()  # type: ignore[union-attr]
        if contrast.lower() in MASKS:
            masks.append(file)
        elif contrast.lower() in CONTRASTS:
            name = (place.parent / before if before else place.parent).as_posix()
            scans.setdefault(name, {})[contrast.lower()] = file
        else:
            scans.setdefault((place.parent / stem).as_posix(), {})[SINGLE] = file
    return scans, masks


def _participants(data: DataFiles, names: Sequence[str]) -> dict[str, pa.Array]:
    """Return the columns of BIDS's `participants.tsv` for each scan."""
    file = next((file for file in data.files if file.name == "participants.tsv"), None)
    if file is None:
        return {}
    table, _ = read_delimited(file, "\t")
    if "participant_id" not in table.column_names:
        return {}
    records = {record["participant_id"]: record for record in table.to_pylist()}
    subjects = [re.search(r"sub-[A-Za-z0-9]+", name) for name in names]
    of_row = [records.get(match[0], {}) if match else {} for match in subjects]
    columns = [name for name in table.column_names if name not in ("file", "volume")]
    return {name: pa.array([record.get(name) for record in of_row], pa.string()) for name in columns}


def _convert(scans: Mapping[str, Mapping[str, Path]], contrasts: tuple[str, ...]) -> Conversion:
    skipped: list[Skipped] = []
    schema = pa.schema({"file": pa.string(), "volume": Volume(contrasts).arrow_type})
    return Conversion(schema, _batches(scans, schema, skipped), skipped)


def _batches(
    scans: Mapping[str, Mapping[str, Path]], schema: pa.Schema, skipped: list[Skipped]
) -> Iterator[pa.RecordBatch]:
    failures = []
    for name, files in scans.items():
        try:
            arrays = {contrast: read_scan(file) for contrast, file in files.items()}
            if len({array.shape for array in arrays.values()}) > 1:
                raise UnreadableExample("its contrasts differ in shape")
        except UnreadableExample as error:
            failures.append(f"{name}: {error}")
            continue
        stored = {contrast: to_npy(array) for contrast, array in arrays.items()}
        yield pa.RecordBatch.from_pylist([{"file": name, "volume": stored}], schema=schema)
    if failures:
        skipped.append(Skipped(len(failures), "cannot be read", failures[0]))


def read_scan(file: Path) -> np.ndarray:
    """Read a scan of three dimensions: uint8 as it is, else float32. Raises UnreadableExample for any other."""
    import nibabel

    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(file))
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # its readers raise whatever zlib and the headers lead to
        raise UnreadableExample(next(iter(str(error).splitlines()), type(error).__name__)) from error
    if array.ndim > 3 and np.prod(array.shape[3:]) == 1:
        array = array.reshape(array.shape[:3])
    if array.ndim != 3 or array.dtype.kind not in "fiub":
        raise UnreadableExample(f"it has the shape {array.shape}; scans of three dimensions are read")
    return np.ascontiguousarray(array if array.dtype == np.uint8 else np.nan_to_num(array.astype(np.float32)))
