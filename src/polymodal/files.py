"""Files and folders that are written as a whole or not at all."""

from __future__ import annotations

import errno
import io
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPECIAL = "it is a pipe, a socket or a device, and no file"


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file to read its bytes. Raises OSError for pipes, sockets and devices, of which reading may never end."""
    return open(path, "rb", opener=_regular)


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its writer
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # for folders, `open` raises an error of its own
        os.close(descriptor)
        raise OSError(errno.EINVAL, SPECIAL, path)
    return descriptor


def is_special(path: str | Path) -> bool:
    """Return whether a path exists and is neither a file nor a folder: a pipe, a socket or a device."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file, which replaces the file at the end of the block.

    Where the block raises, what was written is removed, and the file stays as it was.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder so that nobody sees a part of it: it is renamed first."""
    remove_removed(folder)
    os.rename(folder, _removed(folder))
    remove_removed(folder)


def remove_removed(folder: Path) -> None:
    """Remove what a killed `remove_folder` left."""
    shutil.rmtree(_removed(folder), ignore_errors=True)


def _removed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.removed")


def raise_open_files(needed: int) -> float:
    """Raise the limit of open files of this process to `needed` where it may; return the limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    if soft < needed and hard != soft:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
