"""Scans in NIfTI files: one file a scan, or one for each contrast, as in BraTS and BIDS."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match, place_of, splits_of
from polymodal.corpora.formats._delimited import decoded, read_delimited
from polymodal.corpora.formats._media_folder import class_folders
from polymodal.corpora.rows import Rows
from polymodal.errors import UnreadableExample, UserError, needs
from polymodal.modalities import Findings, Modality, Volume
from polymodal.modalities.modality import to_npy

description = "a folder of NIfTI scans (.nii, .nii.gz), a file for each scan or for each contrast"
SUFFIXES = (".nii", ".nii.gz")
CONTRASTS = (
    "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "t2star", "flair", "pd", "pdw", "dwi", "adc", "swi",
    "ct", "pet", "mra",
)  # fmt: skip
MASKS = ("seg", "mask", "label", "labels", "dseg", "gt")  # files that are no scans
MASK_FOLDERS = ("labelstr", "labelsts", "labels", "masks", "segmentations")  # of the Medical Segmentation Decathlon
CHANNELS = ("imagestr", "imagests", "imagesval")  # folders of nnU-Net, with CASE_0000, CASE_0001 ... for the contrasts
SUBJECT = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")  # of BIDS
SINGLE = "scan"  # contrast of files that name none
FINDINGS = {"findings.csv": ",", "findings.tsv": "\t"}  # beside the scans: a row for each, a column for each finding
NO_REGION = "Findings"  # of findings whose heading names none
ABSENT = ("", "n/a", "no", "0", "0.0", "false", "none")  # what a cell of an absent finding may say


def matches(data: DataFiles) -> Match:
    """Match folders with NIfTI files; BIDS has tables and JSON beside them."""
    files = data.with_suffixes(SUFFIXES)
    return Match.CONTENT if files and len(files) >= len(data.files) / 4 else Match.NO


def read(data: DataFiles) -> Rows:
    """Convert the scans, in the nearest canonical orientation (right, anterior, superior), and list them.

    A row is a scan with all of its contrasts. Classes are folders; `participants.tsv` gives further columns, and
    `findings.csv` the sentences of a report. Raises UserError without nibabel, or where no file can be read.
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
    table, skipped = cached_table(f"nifti 2 {data.root}", files, lambda: _convert(scans, contrasts))
    if table.num_rows == 0:
        raise UserError(f"None of the {len(scans):,} scans can be read: {skipped[0].example}.")
    kept = [str(name) for name in table.column("file").to_pylist()]
    places = [data.root / name for name in kept]
    folders = {part.lower() for place in places for part in place.relative_to(data.root).parts[:-1]}
    are_classes = not any(name.startswith("sub-") or name in CHANNELS for name in folders)
    classes = class_folders(places, data.root) if are_classes else {}
    classes = {name: values for name, values in classes.items() if len(values.unique()) <= len(values) / 2}
    subjects = [match[0] if (match := SUBJECT.search(name)) else None for name in kept]
    columns = classes | (_participants(data, subjects) if any(subjects) else {})  # a folder for each scan is no class
    for name, values in columns.items():
        table = table.append_column(name, values)
    kinds: dict[str, Modality] = {"volume": Volume(contrasts)}
    if (findings := _findings(data, kept, [*scans])) is not None:
        kinds["findings"], values, without_scan = findings
        table = table.append_column("findings", values)
        if without_scan:
            skipped = (*skipped, Skipped(len(without_scan), "is a row of findings that names no scan", without_scan[0]))
    stated = splits_of(files, data.root)
    split = np.array([stated[next(iter(scans[name].values()))] for name in kept], dtype=object) if stated else None
    if masks:
        skipped = (*skipped, Skipped(len(masks), "is a mask", str(masks[0])))
    return Rows(table, data.root, kinds, split, keys="file", skipped=skipped)


def _scans(data: DataFiles) -> tuple[dict[str, dict[str, Path]], list[Path]]:
    """Return the file of each contrast by scan, and the masks. The name of a scan is its path without the contrast."""
    scans: dict[str, dict[str, Path]] = {}
    masks = []
    for file in data.with_suffixes(SUFFIXES):
        place = place_of(file, data.root)
        stem = re.sub(r"\.nii(\.gz)?$", "", place.name, flags=re.IGNORECASE)
        before, contrast = re.fullmatch(r"(?:(.*)[_\-.])?(.*?)", stem).groups()  # type: ignore[union-attr]
        folder = file.resolve().parent.name.lower()
        is_channel = folder in CHANNELS and before and re.fullmatch(r"\d{4}", contrast)
        if contrast.lower() in MASKS or folder in MASK_FOLDERS:
            masks.append(file)
        elif contrast.lower() in CONTRASTS or is_channel:
            name = (place.parent / before if before else place.parent).as_posix()
            scans.setdefault(name, {})[contrast.lower()] = file
        else:
            scans.setdefault((place.parent / stem).as_posix(), {})[SINGLE] = file
    return scans, masks


def _participants(data: DataFiles, subjects: Sequence[str | None]) -> dict[str, pa.Array]:
    """Return the columns of BIDS's `participants.tsv` for each scan, and the subject as `group`, whose scans are in one
    split. Its own column `group`, of patients and controls, becomes `label`; `n/a` is a missing value."""
    of_subject = {"group": pa.array(subjects, pa.string())}
    file = next((file for file in data.files if file.name == "participants.tsv"), None)
    if file is None:
        return of_subject
    table, _ = read_delimited(file, "\t")
    if "participant_id" not in table.column_names:
        return of_subject
    records = {record["participant_id"]: record for record in table.to_pylist()}
    of_row = [records.get(subject, {}) for subject in subjects]
    columns = {}
    for name in table.column_names:
        if name not in ("file", "volume", "participant_id"):
            values = [record.get(name) for record in of_row]
            renamed = "label" if name.lower() == "group" and "label" not in table.column_names else name
            columns[renamed] = pa.array([None if value == "n/a" else value for value in values], pa.string())
    return columns | of_subject


def _findings(
    data: DataFiles, scans: Sequence[str], files: Sequence[str]
) -> tuple[Findings, pa.Array, list[str]] | None:
    """Return the findings of each scan from `findings.csv`, and its rows that name none of `files`, which are all
    scans, also unreadable ones.

    The first column names the scan, every other is a finding with its sentence, or nothing where it is absent. A
    heading such as "Pleura: effusion" names the region, too.

    Raises UserError for a table without findings, with two of one name, with two rows of one scan, or that names no
    scan.
    """
    file = next((file for file in data.files if file.name.lower() in FINDINGS), None)
    if file is None:
        return None
    text = io.StringIO(decoded(file.read_bytes()).removeprefix("\ufeff"), newline="")  # cells may have line breaks
    heading, *records = [line for line in csv.reader(text, delimiter=FINDINGS[file.name.lower()]) if any(line)] or [[]]
    if len(heading) < 2:
        raise UserError(f"{file} has no finding: write the scans in the first column, and a column for each finding.")
    parts = [one.rpartition(":") for one in heading[1:]]
    names = tuple(name.strip() for _, _, name in parts)
    if len({name.lower() for name in names}) < len(names):
        raise UserError(f"{file} has two findings of one name; headings are 'finding' or 'region: finding'.")
    if wrong := [record[0] for record in records if len(record) != len(heading)]:
        raise UserError(f"{file} has {len(heading)} columns, and not as many fields for '{wrong[0]}'.")
    rows = {re.sub(r"\.nii(\.gz)?$", "", record[0].strip()): record[1:] for record in records}
    if len(rows) < len(records):
        raise UserError(f"{file} has {len(records)} rows for {len(rows)} scans; write one row for each scan.")
    of_scan = [rows.get(scan, rows.get(Path(scan).name)) for scan in scans]
    if not any(of_scan):
        raise UserError(f"{file} names no scan of the folder: '{next(iter(rows), '')}' is none of '{scans[0]}' ...")
    sentences = [
        None if cells is None else {name: _sentence(cell, name) for name, cell in zip(names, cells, strict=True)}
        for cells in of_scan
    ]
    kind = Findings(names, tuple(region.strip() or NO_REGION for region, _, _ in parts))
    every_name = {*files, *(Path(one).name for one in files)}
    return kind, pa.array(sentences, kind.arrow_type), [name for name in rows if name not in every_name]


def _sentence(cell: str, name: str) -> str | None:
    """Return the sentence of a cell; "1" and "yes" stand for a finding without one."""
    text = " ".join(cell.split())
    if text.lower() in ABSENT:
        return None
    return f"{name}." if text.lower() in ("1", "1.0", "yes", "true") else text


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
