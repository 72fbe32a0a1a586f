"""Locks of folders that one process at a time may write, such as a run in training or an index that is built."""

from __future__ import annotations

import functools
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from polymodal.errors import UserError, write_errors

Writer = TypeVar("Writer", bound=Callable[..., Any])


def writes(argument: str) -> Callable[[Writer], Writer]:
    """Decorate a function that writes the folder or file which an argument names: one process at a time calls it.

    Nothing is locked where the argument is None.
    """

    def decorate(function: Writer) -> Writer:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def locked(*arguments: Any, **named: Any) -> Any:
            place = signature.bind(*arguments, **named).arguments.get(argument)
            if place is None:
                return function(*arguments, **named)
            with lock_folder(Path(place), "written", "wait until it has ended, or name another place with --out"):
                return function(*arguments, **named)

        return locked  # type: ignore[return-value]

    return decorate


@contextmanager
def lock_folder(folder: Path, doing: str, advice: str) -> Iterator[None]:
    """Hold the lock of a folder, a hidden file beside it that names process and host. The folder need not exist.

    The operating system frees the lock of a process that ends in any way. doing: what the holder does to the folder,
    such as "trained into". Raises UserError when another process holds it. Where the file system has no locks, there is
    none.
    """
    if folder.is_symlink() and not folder.exists():
        target = os.readlink(folder)
        raise UserError(f"{folder} is a link to {target}, which does not exist; remove it, or name another --out.")
    folder = Path(os.path.realpath(folder))
    path = folder.with_name(f".{folder.name}.lock")
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        try:
            with suppress(NotImplementedError):
                lock.acquire()
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except Timeout as error:
            if not path.exists():  # where no file can be made
                raise UserError(f"{folder} cannot be written; name another place with --out.") from error
            raise UserError(f"{folder} is being {doing} by {_owner(path)}; {advice}.") from error
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # where the file system has become read-only
                path.unlink(missing_ok=True)
            lock.release()


def _owner(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
