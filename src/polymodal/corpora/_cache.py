"""The user's cache of prepared data; its folders are created atomically."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from polymodal.errors import UserError


def cache_directory() -> Path:
    """Return `POLYMODAL_CACHE`, or `polymodal` in the user's cache folder (XDG on Linux)."""
    named = os.environ.get("POLYMODAL_CACHE")
    return Path(named).expanduser() if named else user_cache_path("polymodal")


def prepared(name: str, prepare: Callable[[Path], None]) -> Path:
    """Return the folder `corpora/name` of the cache, calling `prepare(folder)` if it does not exist yet.

    `prepare` writes to a temporary folder, which is renamed only when it returns, so a kill at any time leaves nothing
    partial. A second process waits for the first. Raises UserError for a full disk or a cache that cannot be written.
    """
    final = cache_directory() / "corpora" / name
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.parent / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process is preparing '{name}'; waiting for it.", file=sys.stderr)
            lock.acquire()
        with lock:
            lock.release()  # `acquire` above and `with` both count
            if final.is_dir():
                return final
            for left_by_a_kill in final.parent.glob(f".{name}.partial-*"):
                shutil.rmtree(left_by_a_kill)
            with tempfile.TemporaryDirectory(prefix=f".{name}.partial-", dir=final.parent) as partial:
                prepare(Path(partial))
                os.rename(partial, final)
                os.mkdir(partial)  # so that TemporaryDirectory finds what it wants to remove
    except OSError as error:
        raise disk_error(error, final.parent) from error
    return final


def is_prepared(folder: str) -> bool:
    """Return whether `prepared` would find this folder."""
    return (cache_directory() / "corpora" / folder).is_dir()


def remove(name: str) -> int:
    """Delete the prepared data of a corpus, in any format; return the freed bytes."""
    folders = _folders(name)
    freed = sum(size_of(folder) for folder in folders)
    for folder in folders:
        shutil.rmtree(folder)
    return freed


def prepared_size(name: str) -> int:
    """Return the bytes of a corpus in the cache; 0 if it is not there."""
    return sum(size_of(folder) for folder in _folders(name))


def _folders(name: str) -> list[Path]:
    return sorted((cache_directory() / "corpora").glob(f"{name}-[0-9]*"))


def disk_error(error: OSError, folder: Path) -> UserError:
    """Return the UserError for an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk of {folder} is full; free some space, or set POLYMODAL_CACHE to another disk.")
    return UserError(f"{folder} cannot be used ({error.strerror or error}); set POLYMODAL_CACHE to a folder of yours.")


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
