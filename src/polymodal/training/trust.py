"""Which code of a run may be executed: what was trained on this machine by this user, and what the user allows.

A run may bring its recipe's file, or name a module outside this package. Training remembers the SHA-256 digest of such
a file in a file of the user's; code with another digest is neither imported nor executed unless the user says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from platformdirs import user_state_path

from polymodal.errors import UserError

TRUSTED = "trusted.json"

_named_here: set[str] = set()  # digests of the files that the user named to this process


def state_directory() -> Path:
    """`POLYMODAL_STATE`, or `polymodal` in the user's state folder (XDG on Linux)."""
    named = os.environ.get("POLYMODAL_STATE")
    return Path(named).expanduser() if named else user_state_path("polymodal")


def digest(code: bytes) -> str:
    """SHA-256, as hexadecimal digits."""
    return hashlib.sha256(code).hexdigest()


def allow_here(code: bytes) -> None:
    """Trust a file that the user named, until the process ends."""
    _named_here.add(digest(code))


def is_trusted(code: bytes) -> bool:
    """Whether this user has trained with this very file, or named it to this process."""
    return digest(code) in _named_here or digest(code) in _remembered(state_directory() / TRUSTED)


def remember(files: Mapping[Path, bytes]) -> None:
    """Trust these files from now on, in every process of this user. Where nothing can be written, a line says so."""
    if not files:
        return
    folder = state_directory()
    path = folder / TRUSTED
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / f".{TRUSTED}.lock", mode=0o600):
            known = _remembered(path)
            new = {digest(code): str(file.absolute()) for file, code in files.items()}
            if new.keys() - known.keys():
                _write(path, new | known)
    except OSError as error:
        print(
            f"{path} cannot be written ({error.strerror or error}), so this run's code will need --trust-code.",
            file=sys.stderr,
        )


def untrusted(directory: Path, does: str, file: Path, code: bytes) -> UserError:
    """The error for code that is not trusted. does: what would happen, such as 'would run'."""
    return UserError(
        f"The run {directory} {does} {file} (SHA-256 {digest(code)[:12]}), which was not trained with on this machine; "
        "read the file, then allow it with --trust-code, or trust_code=True in Python."
    )


def _remembered(path: Path) -> dict[str, str]:
    """Digest -> the file that it was of. What others may have written is not believed."""
    try:
        about = path.stat()
        if os.name == "posix" and (about.st_uid != os.getuid() or about.st_mode & 0o022):
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, known: Mapping[str, str]) -> None:
    """Replace the file in one step; only the user may read it."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(known, file, indent=2)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
