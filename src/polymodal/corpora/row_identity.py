"""What a row of the user's data is, whatever its place, its key or its file: 8 bytes by its content.

A run keeps those of its training rows, so that an evaluation on data that changed since says which rows were trained
on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._types import is_binary, is_list
from polymodal.corpora._user_splits import CONTENT
from polymodal.corpora.corpus import Corpus
from polymodal.files import open_regular
from polymodal.modalities import Text

WHOLE = 1 << 14  # bytes up to which a value is read as a whole
PIECES, PIECE = 16, 256  # of longer values: evenly spaced pieces, and their bytes


def has_identity(corpus: Corpus) -> bool:
    """Return whether its rows are compared: those of the user's data, in files or in memory, unless they are streamed;
    others never change."""
    return bool({"data", "in_memory"} & corpus.choices.keys()) and corpus.table.num_rows > 0


def row_identities(corpus: Corpus, rows: np.ndarray, open_files: bool = True) -> np.ndarray:
    """Return a hash of 8 bytes for each row: of its media; without any, of its texts; without any, of all it holds.

    Of values above `WHOLE` bytes, their length and pieces count. 0 for a row without any value. open_files: paths stand
    for the content of their files, and not for themselves.
    """
    media = [name for name, kind in corpus.columns.items() if type(kind).__name__ in CONTENT]
    texts = [name for name, kind in corpus.columns.items() if isinstance(kind, Text)]
    names = media or texts or corpus.table.column_names
    roots = [getattr(corpus.columns.get(name), "root", None) or Path() for name in names]
    folders = [root if name in media and open_files else None for name, root in zip(names, roots, strict=True)]
    columns = [corpus.table.column(name) for name in names]
    return np.fromiter(
        (_identity([column[row] for column in columns], folders) for row in rows.tolist()), np.uint64, len(rows)
    )


def _identity(values: list[pa.Scalar], folders: list[Path | None]) -> int:
    if not any(value.is_valid for value in values):
        return 0
    whole = hashlib.blake2b(digest_size=8)
    for value, folder in zip(values, folders, strict=True):
        for content in _contents(value, folder):
            whole.update(len(content).to_bytes(8, "little") + content)
        whole.update(b"\0")
    return int.from_bytes(whole.digest(), "little")


def _contents(value: Any, folder: Path | None) -> Iterator[bytes]:
    """The bytes of a value, or of the files that it names."""
    if not value.is_valid:
        return
    if is_list(value.type) and (is_binary(value.type.value_type) or _is_file(value.type.value_type)):
        for inner in value.values:
            yield from _contents(inner, folder)
    elif _is_file(value.type):
        yield from _contents(value["bytes"] if value["bytes"].is_valid else value["path"], folder)
    elif pa.types.is_struct(value.type):
        for inner in value.values():
            yield from _contents(inner, None)
    elif is_binary(value.type):
        buffer = value.as_buffer()
        yield _pieces(len(buffer), lambda start, end: bytes(buffer[start:end]))
    else:
        yield _file_or_text(value, folder)


def _is_file(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _file_or_text(value: Any, folder: Path | None) -> bytes:
    text = str(value)
    if folder is not None:
        with suppress(OSError, ValueError), open_regular(folder / text) as file:

            def read(start: int, end: int) -> bytes:
                file.seek(start)
                return file.read(end - start)

            return _pieces(file.seek(0, 2), read)
    return " ".join(text.split()).encode(errors="surrogatepass")


def _pieces(size: int, read: Callable[[int, int], bytes]) -> bytes:
    if size <= WHOLE:
        return read(0, size)
    starts = np.linspace(0, size - PIECE, PIECES).astype(int).tolist()
    return size.to_bytes(8, "little") + b"".join(read(start, start + PIECE) for start in starts)
