"""CSV and TSV with a line of headings, also compressed; every value is read as text, and typed by its use.

CSV has no types: a caption `007`, `None` or `NA` is the text that it is. An empty field is a missing value. Files are
in UTF-8, in UTF-16 with a byte order mark, or else in Windows-1252 (`_text_encodings`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._tables import NOTE, read_tables
from polymodal.corpora.formats._text_encodings import NOT_UTF8, decoded_head, text_encoding
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "CSV or TSV files with a line of headings"
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
DELIMITERS = ",\t;|"
MAX_SKIPPED = 0.1  # of the lines, until the file is refused
_DECIMAL_COMMA = r"^\s*[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?\s*$"
BLOCK = 1 << 22  # bytes that are parsed together


def matches(data: DataFiles) -> Match:
    return Match.SUFFIX if data.with_suffixes(SUFFIXES) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the files. Raises UserError for one that is no CSV."""
    return read_tables(data, data.with_suffixes(SUFFIXES), read_csv)


def read_csv(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read one file. Lines with another number of fields are skipped. Raises UserError when more than a tenth are."""
    table, skipped = cached_table("csv", [file], lambda: _convert(file))
    if _headings(file)[0] == ";":  # a comma may stand before decimals
        for place, name in enumerate(table.column_names):
            if _has_decimal_commas(table.column(name)):
                plain = pc.replace_substring(table.column(name), ".", "")  # between thousands
                table = table.set_column(place, name, pc.replace_substring(plain, ",", "."))
    return table, skipped


def _has_decimal_commas(column: pa.ChunkedArray) -> bool:
    """Return whether all values of a column are numbers such as 12,5 and 1.234,50, and one has a comma."""
    first = column[:100].drop_null()
    return len(first) > 0 and all(
        pc.all(pc.match_substring_regex(values, _DECIMAL_COMMA)).as_py() is not False
        and (values is first or pc.any(pc.match_substring(values, ",")).as_py() is True)
        for values in (first, column)
    )


def _convert(file: Path) -> Conversion:
    delimiter, names, start = _headings(file)
    encoding, note = text_encoding(file)  # before Arrow prints a traceback for a line in another encoding
    skipped: list[Skipped] = []
    plain = [name.strip() for name in names]
    batches = _batches(file, delimiter, plain, start, encoding, skipped)
    if any(name.startswith(" ") for name in names[1:]):  # a blank after each delimiter
        batches = map(_trimmed, batches)
    schema = pa.schema(dict.fromkeys(plain, pa.string()), metadata={NOTE: note} if note else None)
    return Conversion(schema, batches, skipped)


def _trimmed(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [pc.utf8_trim_whitespace(column) for column in batch.columns]
    columns = [pc.if_else(pc.equal(column, ""), None, column) for column in columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _headings(file: Path) -> tuple[str, list[str], int]:
    """Return the delimiter, the names of the columns, and the number of lines to their end. Raises UserError where
    there are none."""
    with pa.input_stream(str(file), compression="detect") as stream:
        head = stream.read(1 << 16)
    text = decoded_head(head)
    if not text.strip():
        raise UserError(f"{file} is empty.")
    lines = io.StringIO(text, newline=None).read().split("\n")
    start = next(place for place, line in enumerate(lines) if line.strip())
    stated = re.fullmatch(r"sep=(.)", lines[start].strip())  # as Excel writes it
    start += stated is not None
    first = lines[start] if start < len(lines) else ""
    counts = {delimiter: first.count(delimiter) for delimiter in DELIMITERS}
    tab = ".tsv" in file.name.lower()
    likely = "\t" if tab else max(DELIMITERS, key=lambda delimiter: counts[delimiter])
    delimiter = stated[1] if stated else likely
    reader = csv.reader(io.StringIO("\n".join(lines[start:])), delimiter=delimiter)
    names = next(reader, [])
    if any(name.strip().lower().endswith(IMAGE_SUFFIXES) for name in names):
        raise UserError(
            f"The first line of {file} ({first[:60]}) looks like data; write a line of headings above it, such as "
            f"{delimiter.join(['image', 'caption'][: len(names)] or ['image'])}."
        )
    plain = [name.strip() for name in names]
    repeated = next((name for name in plain if plain.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{file} has the heading '{repeated}' twice; rename one.")
    return delimiter, names, start + reader.line_num


def _batches(
    file: Path, delimiter: str, names: Sequence[str], start: int, encoding: str, skipped: list[Skipped]
) -> Iterator[pa.RecordBatch]:
    bad: list[pacsv.InvalidRow] = []

    def leave_out(row: pacsv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    options = {
        "read_options": pacsv.ReadOptions(
            column_names=list(names), skip_rows=start, block_size=BLOCK, use_threads=False, encoding=encoding
        ),
        "parse_options": pacsv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=leave_out
        ),
        "convert_options": pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    }
    total = 0
    swallowed: list[str] = []
    try:
        with pacsv.open_csv(str(file), **options) as reader:
            for batch in reader:
                total += batch.num_rows
                whole, lost = _without_swallowed(batch, delimiter)
                swallowed += lost
                yield whole
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error) or "utf-8" in str(error).lower():
            raise UserError(f"{file} {NOT_UTF8}.") from error
        if total or "Empty CSV" not in str(error):
            raise UserError(f"{file} cannot be read as CSV: {str(error).splitlines()[0]}") from error
    _check_swallowed(file, swallowed, total, skipped)
    if bad:
        line = f"line {bad[0].number}" if bad[0].number else f"the line '{bad[0].text[:60]}'"
        reason = f"{line} has {bad[0].actual_columns} fields, the headings are {bad[0].expected_columns}"
        if len(bad) > MAX_SKIPPED * (total + len(bad)):
            raise UserError(
                f"In {file}, {len(bad):,} of {total + len(bad):,} lines do not fit the headings: {reason}. "
                f"Put quotation marks around texts that contain '{delimiter}'."
            )
        skipped.append(Skipped(len(bad), "has another number of fields than there are headings", f"{file}: {reason}"))


def _without_swallowed(batch: pa.RecordBatch, delimiter: str) -> tuple[pa.RecordBatch, list[str]]:
    """Leave out rows with a value that goes on into other lines of the file, as after a quotation mark that is not
    closed, and return these values. A caption of several lines is none: its lines do not hold a path, nor a tab."""
    ends = "|".join(map(re.escape, IMAGE_SUFFIXES))
    line = rf"\n[^\n]*{'	' if delimiter == chr(9) else f'(?i:{ends}){re.escape(delimiter)}'}"
    keep = pa.array([True] * batch.num_rows)
    continued: list[str] = []
    for column in batch.columns:
        if pc.any(pc.match_substring(column, "\n")).as_py():
            goes_on = pc.fill_null(pc.match_substring_regex(column, line), False)
            continued += column.filter(goes_on).to_pylist()
            keep = pc.and_(keep, pc.invert(goes_on))
    return (batch.filter(keep) if continued else batch), continued


def _check_swallowed(file: Path, values: Sequence[str], total: int, skipped: list[Skipped]) -> None:
    """Count the lines that were left out. Raises UserError when more than a tenth were."""
    lines = sum(value.count("\n") + 1 for value in values)
    if not lines:
        return
    example = f"the value '{values[0].splitlines()[0][:60]}'"
    if lines > MAX_SKIPPED * (total + lines):
        raise UserError(
            f"In {file}, {example} begins with a quotation mark that is not closed, and holds {lines:,} lines of the "
            'file. Write quotation marks within a text as "", and put the text in quotation marks.'
        )
    reason = "is part of a value whose quotation mark is not closed"
    skipped.append(Skipped(lines, reason, f"{file}: {example}"))
