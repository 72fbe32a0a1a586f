"""Files of one record a line without quotation marks: fields between tabs, `|`, `::` or white space."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import suffix_of
from polymodal.errors import UserError

CHUNK = 50_000  # lines that are converted together
MAX_SKIPPED = 0.1  # of the lines, until the file is refused
HEAD = 1 << 16  # bytes that are looked at


def head_lines(file: Path, count: int = 20) -> list[str]:
    """Return the first whole lines of a text file, without blank ones; none for another file."""
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            data = stream.read(HEAD)
    except (OSError, pa.ArrowException):
        return []
    if b"\0" in data:
        return []
    lines = decoded(data.removeprefix(b"\xef\xbb\xbf")).splitlines()
    whole = lines if len(data) < HEAD else lines[:-1]
    return [line for line in whole if line.strip()][:count]


def decoded(data: bytes) -> str:
    """Decode UTF-8, or Latin-1 where it is none, as in old files such as those of MovieLens."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_delimited(
    file: Path, delimiter: str | None, names: Sequence[str] | None = None, max_fields: int | None = None
) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read all fields as text; an empty one is a missing value.

    delimiter: None for white space. names: of the columns; None: the first line has them. max_fields: further
    delimiters belong to the last field. Lines with another number of fields are skipped. Raises UserError when more
    than a tenth are, or for an empty file.
    """
    first = head_lines(file, 1)
    if not first:
        raise UserError(f"{file} is empty.")
    headings = list(names) if names else [name.strip() for name in first[0].split(delimiter)]
    convert = partial(_convert, file, delimiter, headings, 0 if names else 1, max_fields)
    return cached_table(f"delimited {delimiter} {headings} {max_fields}", [file], convert)


def _convert(file: Path, delimiter: str | None, names: list[str], start: int, max_fields: int | None) -> Conversion:
    skipped: list[Skipped] = []
    schema = pa.schema(dict.fromkeys(names, pa.string()))
    return Conversion(schema, _batches(file, delimiter, schema, start, max_fields, skipped), skipped)


def _batches(
    file: Path, delimiter: str | None, schema: pa.Schema, start: int, max_fields: int | None, skipped: list[Skipped]
) -> Iterator[pa.RecordBatch]:
    bad: list[str] = []
    total = 0
    numbered = (line for line in enumerate(lines_of(file), 1) if line[1].strip())
    lines = itertools.islice(numbered, start, None)
    while chunk := list(itertools.islice(lines, CHUNK)):
        rows = []
        for number, line in chunk:
            fields = line.split(delimiter, (max_fields or 0) - 1)
            if len(fields) == len(schema):
                rows.append([field.strip() or None for field in fields])
            else:
                bad.append(f"{file}: line {number} has {len(fields)} fields, not {len(schema)}")
        total += len(chunk)
        columns = zip(*rows, strict=True) if rows else [()] * len(schema)
        yield pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in columns], schema=schema)
    if len(bad) > MAX_SKIPPED * total:
        raise UserError(f"{len(bad):,} of {total:,} lines do not fit the others: {bad[0]}.")
    if bad:
        skipped.append(Skipped(len(bad), "has another number of fields", bad[0]))


def lines_of(file: Path) -> Iterator[str]:
    """Yield the lines of a text file, also a compressed one. Raises UserError when it cannot be read."""
    rest, is_first = b"", True
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            while block := stream.read(1 << 20):
                data = rest + (block.removeprefix(b"\xef\xbb\xbf") if is_first else block)
                is_first = False
                *whole, rest = data.split(b"\n")
                yield from (decoded(line).rstrip("\r") for line in whole)
    except OSError as error:
        raise UserError(f"{file} cannot be read as {suffix_of(file)[1:] or 'text'}: {error}") from error
    if rest:
        yield decoded(rest).rstrip("\r")
