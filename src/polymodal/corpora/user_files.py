"""The user's own pairs: Parquet, CSV or JSON lines, a folder of such files, webdataset tars; images or clips."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._cache import cache_directory
from polymodal.corpora._splits import Groups, split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.saved import is_saved, open_saved
from polymodal.errors import UserError, unknown
from polymodal.modalities import Expressions, Image, Modality, Questions, Regions, Text, Video
from polymodal.modalities.video import SUFFIXES

READERS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".tar": "webdataset"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTION_NAMES = ("caption", "captions", "text", "txt", "texts", "title", "description", "alt", "name")
# What a column of lists of records is, by the fields that the records must have.
RECORDS: dict[tuple[str, str], type] = {
    ("text", "boxes"): Expressions,
    ("question", "answer"): Questions,
    ("name", "box"): Regions,
}
EXPECTED = "Expected a .parquet, .csv or .jsonl file, a webdataset .tar, or a folder with such files"


def from_path(path: Path | str, image: str | None = None, text: str | None = None) -> Corpus:
    """Open image-caption pairs of the user's own files, memory-mapped through Hugging Face `datasets`.

    image, text: column names, by default inferred by type. Images are encoded bytes, or paths relative to the folder of
    the file; paths of clips (.mp4, .webm ...) make a column of clips. Captions are strings or lists of strings. Columns
    of lists of records are referring expressions (`text`, `boxes` in pixels), questions (`question`, `answer`) or
    objects (`name`, `box`). A column `split` with the values `train`, `validation` and `test` is respected; without it
    a tenth becomes `validation` and a fifth `test`, such that rows with an equal image or an equal caption never
    straddle a split. A folder written by polymodal opens as it is. Raises UserError, which says what was found and what
    was expected, for anything that cannot be used.
    """
    path = Path(path).expanduser()
    if is_saved(path):
        return open_saved(path)
    files = _files(path)
    table = _read(files)
    records = _records(table)
    kinds = [type(kind).__name__.lower() for kind in records.values()]
    if text is None and records and not any(_is_text(table, name) for name in table.column_names):
        image = _chosen("image", image, table, _looks_like_images)
    else:
        image, text = chosen_columns(table, image, text)
    shown = Video(root=files[0].parent) if _are_paths(table, image, SUFFIXES) else Image(files[0].parent)
    keys = next((name for name in ("__key__", "key", "id") if name in table.column_names), None)
    if keys is None and _is_string(table.schema.field(image).type):
        keys = image
    return Corpus(
        about=About(
            name=path.stem,
            description=f"{table.num_rows:,} examples of {path.name}",
            license="the user's own",
            source=str(path),
            modalities=(type(shown).__name__.lower(), *(["text"] if text else []), *kinds),
        ),
        table=table,
        columns={image: shown} | ({text: Text()} if text else {}) | records,
        splits=_splits(table, image, text),
        keys=keys,
        choices={"data": str(path.resolve()), "image": image, "text": text},
    )


def chosen_columns(table: pa.Table, image: str | None, text: str | None) -> tuple[str, str]:
    """Return the image and the caption column, inferred by type where no name is given. Raises UserError when there
    is none."""
    image = _chosen("image", image, table, _looks_like_images)
    return image, _chosen("text", text, table, lambda table, name: name != image and _is_text(table, name))


def _records(table: pa.Table) -> dict[str, Modality]:
    """Return the columns of lists of records that methods can use."""
    modalities: dict[str, Modality] = {}
    for column in table.schema:
        if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
            fields = {field.name for field in column.type.value_type}
            kind = next((kind for names, kind in RECORDS.items() if fields >= set(names)), None)
            if kind is not None:
                modalities[column.name] = kind()
    return modalities


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise UserError(f"{path} ends in '{path.suffix}'. {EXPECTED}.")
        return [path]
    for suffix in READERS:
        if files := sorted(path.glob(f"*{suffix}")):
            return files
    names = sorted(item.name for item in path.iterdir())
    found_text = f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "nothing"
    raise UserError(f"The folder {path} holds {found_text}. {EXPECTED}.")


def _read(files: list[Path]) -> pa.Table:
    import datasets  # slow to import

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    try:
        read = datasets.load_dataset(
            READERS[files[0].suffix.lower()],
            data_files=[str(file.resolve()) for file in files],
            split="train",
            cache_dir=str(cache_directory() / "datasets"),
        )
    except Exception as error:  # a dozen kinds, from pyarrow, pandas, tarfile and datasets itself
        reason = first_line(error.__cause__ or error)
        named = files[0] if len(files) == 1 else f"One of {len(files)} files, {files[0]} ...,"
        raise UserError(f"{named} cannot be read as {files[0].suffix[1:]}: {reason}") from error
    table = read.data.table
    if table.num_rows == 0:
        raise UserError(f"{files[0]} has no rows.")
    return table


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or its type if it is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _chosen(kind: str, given: str | None, table: pa.Table, fits: Any) -> str:
    """Return the column that the user named, or the only one (or the one with a common name) of the right type."""
    if given is not None:
        if given not in table.column_names:
            raise unknown("column", given, table.column_names)
        if not fits(table, given):
            raise UserError(f"The column '{given}' is {table.schema.field(given).type}, which is no {kind} column.")
        return given
    candidates = [name for name in table.column_names if fits(table, name)]
    usual = [name for name in CAPTION_NAMES if name in candidates] if kind == "text" else []
    if len(candidates) == 1 or usual:
        return (usual or candidates)[0]
    columns = ", ".join(f"{field.name} ({_short(field.type)})" for field in table.schema)
    what = "image bytes, or paths of images or clips" if kind == "image" else "captions"
    if not candidates:
        raise UserError(f"No column has {what}; the columns are {columns}. Name one with --{kind} COLUMN.")
    raise UserError(f"Several columns may have {what}: {', '.join(candidates)}. Name one with --{kind} COLUMN.")


def _short(kind: pa.DataType) -> str:
    return str(kind) if len(str(kind)) < 40 else f"{str(kind)[:37]}..."


def _sample(table: pa.Table, name: str) -> list[Any]:
    return [value for value in table.column(name)[:100].to_pylist() if value is not None]


def _looks_like_images(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    if pa.types.is_struct(kind):
        return {field.name for field in kind} >= {"bytes", "path"}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return _are_paths(table, name, IMAGE_SUFFIXES + SUFFIXES)


def _are_paths(table: pa.Table, name: str, suffixes: tuple[str, ...]) -> bool:
    values = _sample(table, name) if _is_string(table.schema.field(name).type) else []
    return bool(values) and sum(value.lower().endswith(suffixes) for value in values) > len(values) / 2


def _is_text(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    if pa.types.is_list(kind):
        return _is_string(kind.value_type)
    return _is_string(kind) and not name.startswith("__") and not _looks_like_images(table, name)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _splits(table: pa.Table, image: str, text: str | None) -> dict[str, np.ndarray]:
    if "split" in table.column_names and _is_string(table.schema.field("split").type):
        split_column = np.array(table.column("split").to_pylist(), dtype=object)
        named = {
            name: np.flatnonzero(split_column == name) for name in pc.unique(table.column("split")).to_pylist() if name
        }
        if "train" in named:
            return named
    groups = Groups(table.num_rows)
    groups.join_equal(_keys(table, image, text))
    names = [str(groups.root(row)) for row in range(table.num_rows)]
    split_of = split_groups([""] * len(names), names)
    split = np.array([split_of[name] for name in names])
    return {name: np.flatnonzero(split == name) for name in ("train", "validation", "test")}


def _keys(table: pa.Table, image: str, text: str | None) -> Iterable[tuple[int, Any]]:
    """Yield (row, leakage key): the image, and each caption."""
    for row, value in enumerate(table.column(image)):
        content = value.as_py()
        if isinstance(content, dict):
            content = content["bytes"] or content["path"]
        if content is not None:
            yield row, hash(content)
    for row, value in enumerate(table.column(text) if text else ()):
        captions = value.as_py() or []
        for caption in [captions] if isinstance(captions, str) else captions:
            yield row, ("caption", (caption or "").strip().lower())
