"""Arrow copies of files that cannot be memory-mapped as they are (CSV, JSON, Parquet), in the cache of the user."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from polymodal.corpora._cache import cache_directory, disk_error
from polymodal.corpora.corpus import Skipped
from polymodal.errors import UserError

VERSION = 5  # of what is written; another one is written anew


class Conversion:
    """Batches of a conversion, with what is known about it only at the end: the rows that were skipped."""

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], skipped: list[Skipped] | None = None):
        self.schema, self.batches, self.skipped = schema, batches, skipped if skipped is not None else []


def cached_table(
    kind: str, files: Sequence[Path], convert: Callable[[], Conversion]
) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Return the memory-mapped table of these files, converting them unless a copy of the same files exists.

    Files are the same if their path, size, inode and times of modification and of change are: a file that replaced
    another with an equal time of modification is noticed. Copies of earlier states are removed. Raises UserError for a
    full disk; exceptions of `convert` pass.
    """
    place = hashlib.sha256(json.dumps([kind, *map(str, files)]).encode()).hexdigest()[:16]
    states = list(map(_state, files))
    state = hashlib.sha256(json.dumps([VERSION, states]).encode()).hexdigest()[:16]
    folder = cache_directory() / "tables"
    final = folder / f"{place}-{state}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{place}.lock"):
            if not final.is_file():
                for stale in folder.glob(f"{place}-*"):
                    with contextlib.suppress(OSError):  # in use, on Windows
                        stale.unlink()
                _write(final, _reading(files, convert))
    except OSError as error:
        raise disk_error(error, folder) from error
    described = json.loads(final.with_suffix(".json").read_text(encoding="utf-8"))
    skipped = tuple(Skipped(**record) for record in described["skipped"])
    return pa.ipc.open_file(pa.memory_map(str(final))).read_all(), skipped


def _state(file: Path) -> tuple[int, ...]:
    """Return what changes with a file; of a symbolic link to nowhere, which its format passes over, nothing."""
    try:
        stat = os.stat(file)
    except OSError:
        if not file.is_symlink():
            raise
        return ()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _reading(files: Sequence[Path], convert: Callable[[], Conversion]) -> Conversion:
    """Return the conversion, whose errors of the system are those of the file that is read, and not of the cache."""

    def batches(conversion: Conversion) -> Iterator[pa.RecordBatch]:
        try:
            yield from conversion.batches
        except OSError as error:
            raise UserError(f"{files[0]} cannot be read: {error.strerror or first_words(error)}.") from error

    try:
        conversion = convert()
    except OSError as error:
        raise UserError(f"{files[0]} cannot be read: {error.strerror or first_words(error)}.") from error
    return Conversion(conversion.schema, batches(conversion), conversion.skipped)


def first_words(error: Exception) -> str:
    """Return the message of an error of Arrow, which may have several lines, in one."""
    return " ".join(str(error).split()).removesuffix(".")


def _write(final: Path, conversion: Conversion) -> None:
    partial = final.with_suffix(f".{os.getpid()}.partial")
    try:
        with pa.ipc.new_file(str(partial), conversion.schema) as writer:
            for batch in conversion.batches:
                writer.write_batch(batch)
        described = {"skipped": [asdict(skipped) for skipped in conversion.skipped]}
        final.with_suffix(".json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
