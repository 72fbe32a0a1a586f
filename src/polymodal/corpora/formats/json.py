"""JSON and JSON lines: a list of records, one record a line, or an object that contains the list of records.

Columns of mixed types are read as they mean: numbers among texts become text, a text among lists a list of one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora._types import fitted, is_list, is_string, merged_type, type_of
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._tables import read_tables
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "JSON (a list of records) or JSON lines"
LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
SUFFIXES = (*LINES, ".json", ".json.gz")
CHUNK = 10_000  # records that are converted together
UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError)  # for types, or for UTF-8
MAX_SKIPPED = 0.1  # of the lines, until the file is refused


def matches(data: DataFiles) -> Match:
    return Match.SUFFIX if data.with_suffixes(SUFFIXES) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the files. Raises UserError for one that is no JSON, or holds no records."""
    return read_tables(data, data.with_suffixes(SUFFIXES), read_json)


def read_json(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read one file. Lines that are no JSON are skipped. Raises UserError when more than a tenth are."""
    return cached_table("json", [file], lambda: _convert(file))


def table_of(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return records as a table. Raises UserError for values that are no data."""
    chunk = list(records)
    return pa.Table.from_batches([_batch(chunk, _schema([chunk]))])


def _convert(file: Path) -> Conversion:
    skipped: list[Skipped] = []
    records = _records(file)
    schema = _schema(_chunks(records([])))
    return Conversion(schema, (_batch(chunk, schema) for chunk in _chunks(records(skipped))), skipped)


def _chunks(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(itertools.islice(records, CHUNK)):
        yield chunk


def _schema(chunks: Iterable[list[Any]]) -> pa.Schema:
    kind: pa.DataType = pa.null()
    for chunk in chunks:
        try:
            inferred = pa.array(chunk).type
        except UNFIT:  # mixed types
            inferred = type_of(chunk).value_type
        kind = merged_type(kind, inferred)
    return pa.schema(list(kind)) if pa.types.is_struct(kind) else pa.schema([])


def _batch(chunk: list[Any], schema: pa.Schema) -> pa.RecordBatch:
    kind = pa.struct(list(schema))
    try:
        array = pa.array(chunk)
        if array.type != kind:
            array = pa.array(_checked(chunk, array.type, kind), type=kind)
    except UNFIT:
        array = pa.array([fitted(record, kind) for record in chunk], type=kind)
    return pa.RecordBatch.from_struct_array(array)


def _checked(chunk: list[Any], inferred: pa.DataType, kind: pa.DataType) -> list[Any]:
    """Return the records, with a text in the place of a list as a list of one, where Arrow makes one of its letters."""
    return [fitted(record, kind) for record in chunk] if _has_text_for_list(inferred, kind) else chunk


def _has_text_for_list(inferred: pa.DataType, kind: pa.DataType) -> bool:
    if is_list(kind):
        return is_string(inferred) or (is_list(inferred) and _has_text_for_list(inferred.value_type, kind.value_type))
    if not (pa.types.is_struct(kind) and pa.types.is_struct(inferred)):
        return False
    wanted = {field.name: field.type for field in kind}
    return any(_has_text_for_list(field.type, wanted[field.name]) for field in inferred if field.name in wanted)


def _records(file: Path) -> Callable[[list[Skipped]], Iterator[dict[str, Any]]]:
    """Return what yields the records of a file, which is loaded once unless it has lines, and adds those that are left
    out to a list. Raises UserError where it has none."""
    with pa.input_stream(str(file), compression="detect") as stream:
        first = stream.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not first:
        raise UserError(f"{file} is empty.")
    named_lines = file.name.lower().endswith(LINES) and not first.startswith(b"[")
    if named_lines or _is_lines(first):
        return lambda skipped: _of_lines(file, skipped)
    try:
        held = _of_whole(file, load(file))
    except UserError as error:
        if not str(getattr(error.__cause__, "msg", "")).startswith("Extra data"):  # lines, the first of which is long
            raise
        return lambda skipped: _of_lines(file, skipped)
    return lambda _: iter(held)


def _is_lines(first: bytes) -> bool:
    """Return whether the first line is a whole record, so that JSON lines have the suffix .json."""
    try:
        return isinstance(json.loads(first.splitlines()[0]), dict) and len(first.splitlines()) > 1
    except (ValueError, RecursionError):
        return False


def _of_lines(file: Path, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
    bad, total, example = 0, 0, ""
    with pa.input_stream(str(file), compression="detect") as stream:
        for number, line in enumerate(_lines(stream), 1):
            if not line.strip():
                continue
            total += 1
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("it is no object")
            except (ValueError, RecursionError) as error:
                bad += 1
                example = example or f"{file}, line {number}: {error}"
                continue
            yield record
    if bad > MAX_SKIPPED * total:
        raise UserError(f"{bad:,} of {total:,} lines are no JSON records ({example}).")
    if bad:
        skipped.append(Skipped(bad, "is no JSON record", example))


def _lines(stream: Any) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(1 << 20):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    yield rest


def load(file: Path, slim: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Load a JSON file. Raises UserError when it is none.

    slim: returns what is kept of each object as soon as it is read, so that the rest of a large file takes no memory.
    """
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            return json.loads(stream.read(), object_hook=slim)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error


def _of_whole(file: Path, held: Any) -> Iterable[dict[str, Any]]:
    if isinstance(held, dict):
        lists = {name: value for name, value in held.items() if isinstance(value, list) and value}
        records = {name: value for name, value in lists.items() if isinstance(value[0], dict)}
        if len(records) == 1:
            held = next(iter(records.values()))
        elif columns := _columns(held):
            held = [dict(zip(held, row, strict=True)) for row in zip(*columns, strict=True)]
        elif held and all(name.lower().endswith(IMAGE_SUFFIXES) for name in held) and _are_captions(held.values()):
            held = [{"image": name, "caption": value} for name, value in held.items()]
        elif held and all(isinstance(value, dict) for value in held.values()):
            held = [{"id": name} | value for name, value in held.items()]
        else:
            raise UserError(
                f"{file} is an object with {', '.join(list(held)[:6]) or 'nothing'}; a list of records is needed, such "
                'as [{"image": "1.jpg", "caption": "a cat"}, ...].'
            )
    if not isinstance(held, list) or not all(isinstance(record, dict) for record in held):
        raise UserError(f'{file} is no list of records, such as [{{"image": "1.jpg", "caption": "a cat"}}, ...].')
    if held and isinstance(held[0].get("annotations"), list) and isinstance(held[0].get("data"), dict):
        raise UserError(
            f"{file} is a full export of Label Studio, which is not read; export the project as JSON-MIN or CSV, or as "
            "COCO if it has boxes."
        )
    return held


def _columns(held: Mapping[str, Any]) -> list[list[Any]]:
    """Return the values of each column of an object of columns, lists of one length or, as pandas writes them, objects
    with the numbers of the rows; none for another object."""
    values = list(held.values())
    if len(values) > 1 and all(isinstance(value, list) for value in values):
        return values if len({len(value) for value in values}) == 1 and values[0] else []
    rows = values[0] if values and isinstance(values[0], dict) else {}
    by_row = rows and all(name.isdigit() for name in rows)
    if by_row and all(isinstance(value, dict) and value.keys() == rows.keys() for value in values):
        return [[value[name] for name in rows] for value in values]
    return []


def _are_captions(values: Iterable[Any]) -> bool:
    return all(isinstance(one, str) for value in values for one in (value if isinstance(value, list) else [value]))
