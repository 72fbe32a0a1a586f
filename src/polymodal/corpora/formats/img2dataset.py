"""Output folders of img2dataset: shards of `webdataset`, `files` or `parquet`, beside Parquet files of metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats import parquet, webdataset
from polymodal.corpora.formats._data_files import DataFiles, Match, place_of
from polymodal.corpora.formats._tables import concatenated, read_tables
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Image
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "output folders of img2dataset, in its formats webdataset, files and parquet"
FIELDS = {"key", "status", "error_message"}  # of its metadata; status: success, failed_to_download, failed_to_resize


def matches(data: DataFiles) -> Match:
    """Match Parquet files with the metadata of img2dataset beside, or with, the images."""
    metadata = _metadata(data)
    if not metadata:
        return Match.NO
    images = data.with_suffixes((".tar", *IMAGE_SUFFIXES)) or _image_columns(pq.read_schema(metadata[0]))
    return Match.CONTENT if images else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the shards; downloads that failed are counted. Raises UserError when no image was downloaded."""
    metadata = _metadata(data)
    if not metadata:
        raise UserError(f"{data.given[0]} has no Parquet file with the columns {', '.join(sorted(FIELDS))}.")
    tars = data.with_suffixes(webdataset.SUFFIXES)
    if tars:
        rows = read_tables(data, tars, webdataset.read_tar)
        rows = replace(rows, columns=webdataset.member_modalities(rows.table.schema))
        failed = _failed(concatenated([_statuses(file) for file in metadata]))
        return replace(rows, skipped=(*rows.skipped, *failed))
    table = concatenated([parquet.read_file(file)[0] for file in metadata])
    failed = _failed(table)
    table = table.filter(pc.equal(table.column("status"), "success")) if failed else table
    if not table.num_rows:
        raise UserError(f"No image of {data.given[0]} was downloaded: {failed[0].example}.")
    if _image_columns(table.schema):
        return Rows(table, data.root, skipped=failed)
    return _of_files(data, table, failed)


def _metadata(data: DataFiles) -> list[Path]:
    """Return the Parquet files that have the metadata; only the first is looked at when it is another."""
    files = []
    for file in data.with_suffixes((".parquet",)):
        try:
            names = pq.read_schema(file).names
        except (pa.ArrowException, OSError):
            continue
        if {*names} >= FIELDS:
            files.append(file)
        elif not files:
            break
    return files


def _image_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if f".{name}" in IMAGE_SUFFIXES]


def _statuses(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, columns=sorted(FIELDS))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _failed(table: pa.Table) -> tuple[Skipped, ...]:
    failed = table.filter(pc.not_equal(table.column("status"), "success"))
    if not failed.num_rows:
        return ()
    first = failed.slice(0, 1).to_pylist()[0]
    reason = f"was not downloaded by img2dataset ({first['status']})"
    return (Skipped(failed.num_rows, reason, f"{first['key']}: {first['error_message']}"),)


def _of_files(data: DataFiles, table: pa.Table, failed: tuple[Skipped, ...]) -> Rows:
    """Return the rows of the metadata with the path of the image of each, which is `SHARD/KEY.SUFFIX`."""
    images = {file.stem: place_of(file, data.root).as_posix() for file in data.with_suffixes(IMAGE_SUFFIXES)}
    paths = [images.get(key) for key in table.column("key").to_pylist()]
    missing = [key for key, path in zip(table.column("key").to_pylist(), paths, strict=True) if path is None]
    if len(missing) == len(paths):
        raise UserError(f"{data.given[0]} has no image with a key of its metadata, such as {missing[0]}.jpg.")
    skipped = (*failed, *((Skipped(len(missing), "has no image file", missing[0]),) if missing else ()))
    table = table.add_column(0, "image", pa.array(paths, pa.string()))
    table = table.filter(pc.is_valid(table.column("image")))
    return Rows(table, data.root, {"image": Image(data.root)}, keys="key", skipped=skipped)
