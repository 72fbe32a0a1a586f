"""Encodings of text files of users: UTF-8, UTF-16 with a byte order mark, else Windows-1252, as Excel writes CSV."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from polymodal.errors import UserError

BLOCK = 1 << 22  # bytes that are decoded together
UTF16 = (b"\xff\xfe", b"\xfe\xff")
UTF32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
NOT_UTF8 = "is not in UTF-8; save it as UTF-8"
MAX_LONG = 0.1  # of the runs of other bytes than ASCII; in Western European texts, almost all are one or two bytes
_RUN = re.compile(rb"[\x80-\xff]+")
_WORD = re.compile(r"\w*[^\W\x00-\x7f]\w*|[^\x00-\x7f]")


def text_encoding(file: Path) -> tuple[str, str]:
    """Return the encoding of a file, by all of its bytes, and a sentence about it where it is not UTF-8.

    Raises UserError for a file in several encodings, and for one in another encoding than these three.
    """
    head = next(_blocks(file), b"")[:4]
    if head.startswith(UTF32):
        raise UserError(f"{file} is in UTF-32; save it as UTF-8.")
    if b"\0" in head and not head.startswith(UTF16):
        raise UserError(f"{file} is in UTF-16 without a byte order mark, or no text; save it as UTF-8.")
    if head.startswith(UTF16):
        _decode(file, "utf-16")
        return "utf-16", f"{file.name} is read as UTF-16."
    try:
        _decode(file, "utf-8")
    except UserError:
        return "cp1252", _western(file)
    return "utf8", ""


def decoded_head(head: bytes) -> str:
    """Return the beginning of a file as text; a character that is cut off at its end is left out."""
    if head.startswith(UTF16):
        return codecs.getincrementaldecoder("utf-16")(errors="replace").decode(head)
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return head.decode("cp1252", errors="replace")


def _blocks(file: Path) -> Iterator[bytes]:
    with pa.input_stream(str(file), compression="detect") as stream:
        while block := stream.read(BLOCK):
            yield block


def _decode(file: Path, encoding: str) -> None:
    """Raise UserError for a file in another encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in _blocks(file):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise UserError(f"{file} begins as {encoding.upper()} does, and is damaged: {error}.") from error


def _lines(file: Path) -> Iterator[bytes]:
    rest = b""
    for block in _blocks(file):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    yield rest


def _western(file: Path) -> str:
    """Return a sentence about a file in Windows-1252. Raises UserError for one that has lines in UTF-8, too, and for
    one whose bytes are hardly those of Western European texts."""
    utf8, example = 0, ""
    runs = long_runs = 0
    for number, line in enumerate(_lines(file), 1):
        if line.isascii():
            continue
        lengths = [len(run) for run in _RUN.findall(line)]
        runs, long_runs = runs + len(lengths), long_runs + sum(length > 2 for length in lengths)
        try:
            line.decode("utf-8")
            utf8 = utf8 or number
        except UnicodeDecodeError:
            try:
                word = _WORD.search(line.decode("cp1252"))
            except UnicodeDecodeError as error:
                raise UserError(f"{file} {NOT_UTF8} (line {number} is not in Windows-1252, either).") from error
            example = example or (f"'{word[0][:40]}' in line {number}" if word else f"line {number}")
        if utf8 and example:
            raise UserError(
                f"{file} has lines in UTF-8 (line {utf8}) and others that are not ({example}); save all as UTF-8."
            )
    if long_runs > MAX_LONG * runs:
        raise UserError(f"{file} {NOT_UTF8} (as Windows-1252 it would have {example}).")
    return f"{file.name} is not in UTF-8 and is read as Windows-1252: {example}."
