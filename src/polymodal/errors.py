"""Errors a user can cause: one sentence that says what to do, exit status 2, no traceback."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_SEARCHED = 10_000  # files of a folder among which a similar name is looked for
TOO_MANY = os.strerror(errno.EMFILE)


class UserError(Exception):
    """Something the user can put right; the message is one sentence that says how."""


class MissingModality(UserError):
    """A method needs a modality that the data does not have. modality: its name, in lower case."""

    def __init__(self, message: str, modality: str):
        super().__init__(message)
        self.modality = modality


class MemoryExhausted(UserError):
    """There is not enough memory, which is no fault of the file that was being read."""


class UnreadableExample(ValueError):
    """An example that cannot be used; the message says why. Loaders skip, count and name it."""


def unusable(error: UnreadableExample) -> UserError:
    """The error for a value that the user named, such as an image that is none: the reason as a sentence."""
    reason = str(error)
    return UserError(f"{reason[0].upper()}{reason[1:]}.")


def needs(package: str, extra: str, what: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"{what} needs the package {package}: pip install 'polymodal[{extra}]'.")


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest existing one.

    >>> str(unknown("recipe", "clpi", ["clip", "siglip"]))
    "There is no recipe 'clpi'; did you mean 'clip'?"
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    advice = f"did you mean '{nearest[0]}'?" if nearest else f"choose one of: {', '.join(known)}."
    return UserError(f"There is no {kind} '{name}'; {advice}")


def missing(what: str, path: Path | str) -> UserError:
    """The error for a path that does not exist, with the nearest one there is. what: such as 'file or folder'."""
    near = nearest_path(Path(path))
    return UserError(f"There is no {what} {path}{f'; did you mean {near}?' if near else '.'}")


def nearest_path(path: Path) -> Path | None:
    """Return the path beside one that does not exist whose name is most similar; None where it exists, or none is."""
    with suppress(OSError):
        if path.exists() or not path.parent.is_dir():
            return None
        beside = [one.name for one in itertools.islice(path.parent.iterdir(), MAX_SEARCHED) if one.name[0] != "."]
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
        return path.with_name(near[0]) if near else None
    return None


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the machine or of a GPU is exhausted.

    torch raises a RuntimeError for the machine's memory and an OutOfMemoryError for a GPU's; a library that finds no
    room when it is imported is an ImportError.
    """
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    library = isinstance(error, ImportError) and "failed to map segment" in str(error)
    of_system = getattr(error, "errno", None) == errno.ENOMEM
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or allocator
        or library
        or of_system
    )


def check_resources(error: BaseException) -> None:
    """Raise UserError for an error that says that memory is exhausted or that too many files are open.

    It is no fault of the file that was being read.
    """
    if lacks_memory(error):
        raise MemoryExhausted(
            f"There is not enough memory ({one_line(error)}); end other programs, or choose smaller batches "
            "(--batch-size) or a smaller model (--size); what was saved stays, and resume RUN goes on from there."
        ) from error
    if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE) and TOO_MANY not in str(error):
        return
    try:
        import resource
    except ImportError:  # Windows has no such limit
        limit = "the limit of the system"
    else:
        limit = f"ulimit -n: {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    raise UserError(f"Too many files are open at the same time ({limit}); raise the limit: ulimit -n 1024.") from error


@contextmanager
def write_errors(place: Path) -> Iterator[None]:
    """Raise UserError for a file or folder that cannot be written: a read-only place, a full disk.

    safetensors and tokenizers raise errors of their own, the latter a bare Exception.
    """
    try:
        yield
    except Exception as error:
        of_library = type(error) is Exception or type(error).__name__ == "SafetensorError"
        if not (of_library or isinstance(error, OSError)):
            raise
        check_resources(error)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        why = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise UserError(f"{place} cannot be written: {why}.") from error


def check_writable(folder: Path) -> None:
    """Raise UserError when nothing can be written into a folder, or when it cannot be made. Nothing is left there."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    with write_errors(folder), tempfile.TemporaryFile(dir=existing):
        pass


@contextmanager
def read_errors(place: Path, advice: str) -> Iterator[None]:
    """Raise UserError for a file that is missing, damaged or of other content, whatever its reader raises.

    advice: what to do, such as "train the run again".
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{place} is missing; {advice}.") from error
    except Exception as error:  # readers raise errors of their own, tokenizers a bare Exception
        if lacks_memory(error):
            raise MemoryExhausted(f"{place} cannot be read: there is not enough memory ({one_line(error)}).") from error
        check_resources(error)
        raise UserError(f"{place} is damaged ({one_line(error)}); {advice}.") from error


def one_line(error: BaseException) -> str:
    """Return type and message of an error of a library, in a line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message if len(message) <= 120 else message[:117] + '...'}".removesuffix(": ")
