"""Files and folders that are written as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
