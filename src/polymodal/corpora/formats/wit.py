"""The release of WIT: TSV files with 17 columns, also compressed, beside the images, which it names by URL.

An image file has the name of the end of its URL, with or without escapes such as `%20`. Rows whose image is not there
are left out and counted, and so are rows without a caption. Splits are those of the file names
(`wit_v1.train.all-...`), else images and pages that are connected by rows are in one split.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._splits import connected_groups
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match, splits_of
from polymodal.corpora.formats._delimited import head_lines
from polymodal.corpora.formats._image_files import ImageFiles, missing_images
from polymodal.corpora.formats._tables import concatenated
from polymodal.corpora.formats.csv import read_csv
from polymodal.corpora.rows import Rows
from polymodal.corpora.text_fields import CAPTIONS, COLUMNS, FIELDS, IMAGE, PAGE, is_true, stored_captions
from polymodal.errors import UserError
from polymodal.modalities import Image, Modality, Text

description = "TSV files of WIT, Wikipedia's image-text data, beside the images"
SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz")
NEEDED = ("language", PAGE, IMAGE)


def matches(data: DataFiles) -> Match:
    return Match.CONTENT if any(_is_wit(file) for file in data.with_suffixes(SUFFIXES)[:1]) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read all files. Raises UserError for a column that is missing, and when no image or no caption is there."""
    files = data.with_suffixes(SUFFIXES)
    if not files:
        raise UserError(f"{data.given[0]} has no TSV file of WIT.")
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    for file in files:
        table, left_out = read_csv(file)
        if lacking := [name for name in NEEDED if name not in table.column_names]:
            raise UserError(f"{file} has no column {lacking[0]}; the columns of WIT are {', '.join(COLUMNS)}.")
        if not {FIELDS[field] for field in CAPTIONS} & {*table.column_names}:
            raise UserError(f"{file} has no column of captions, such as {FIELDS['reference']}.")
        tables.append(table)
        skipped += left_out
    stated = splits_of(files, data.root)
    table = concatenated(tables)
    if not table.num_rows:
        raise UserError(f"{files[0]} has no rows.")
    images, urls = ImageFiles.of(data), table.column(IMAGE).to_pylist()
    file_of = {url: _file_of(url, images) for url in dict.fromkeys(urls)}
    lost = [str(url) for url in urls if file_of[url] is None]
    skipped += missing_images(len(lost), len(urls), next(iter(lost), ""), images, files[0])
    there = pa.array([file_of[url] is not None for url in urls])
    table = _typed(table.append_column("image", pa.array([file_of[url] for url in urls], pa.string()))).filter(there)
    texts = pa.array([stored_captions(row) or None for row in table.to_pylist()], Text().arrow_type)
    captioned = texts.is_valid()
    if mute := len(texts) - captioned.true_count:
        first = table.column(IMAGE).filter(pc.invert(captioned))[0].as_py()
        skipped.append(Skipped(mute, "has no reference, attribution or alternative text", str(first)))
    if not captioned.true_count:
        raise UserError(f"{files[0]} has no caption beside an image; fill a column such as {FIELDS['reference']}.")
    table = table.append_column("text", texts).filter(captioned)
    split = None
    if stated is not None:
        of_row = np.repeat([stated[file] for file in files], [len(one) for one in tables])
        split = of_row[there.to_numpy(zero_copy_only=False)][captioned.to_numpy(zero_copy_only=False)]
    else:
        groups = connected_groups(table.column(IMAGE).to_pylist(), table.column(PAGE).to_pylist())
        table = table.append_column("group", pa.array(groups, pa.string()))
    columns: dict[str, Modality] = {"image": Image(images.root), "text": Text()}
    plain = tuple(name for name in table.column_names if name in COLUMNS)
    return Rows(table, images.root, columns, split=split, plain=plain, skipped=tuple(skipped))


def _is_wit(file: Path) -> bool:
    first = next(iter(head_lines(file, 1)), "")
    return all(name in first for name in (PAGE, IMAGE, "caption_"))


def _file_of(url: str | None, images: ImageFiles) -> str | None:
    """Return the path of the file that has the folders and the name of a URL, else its name, or that a path names."""
    if not url:
        return None
    path = urlsplit(url).path.lstrip("/") if "://" in url else url
    names = (path, unquote(path))  # of a URL, folders as wget makes them
    ends = (PurePosixPath(path).name, unquote(PurePosixPath(path).name))
    return images.find_any([name for name in (*names, *ends) if name and not name.startswith("/") and ".." not in name])


def _typed(table: pa.Table) -> pa.Table:
    """Return the table with numbers and truth values in place of their texts; what is neither is missing."""
    for place, name in enumerate(table.column_names):
        kind = COLUMNS.get(name)
        if kind == pa.bool_():
            values = [None if value is None else is_true(value) for value in table.column(name).to_pylist()]
            table = table.set_column(place, name, pa.array(values, kind))
        elif kind == pa.int64():
            numbers = pc.if_else(pc.match_substring_regex(table.column(name), r"^\d{1,9}$"), table.column(name), None)
            table = table.set_column(place, name, pc.cast(numbers, kind))
    return table
