"""Trust in code of runs: files used for training on this machine by this user, and files that the user allows.

A run may contain a recipe file, or name a module outside this package. Training stores the SHA-256 digest of such a
file in the user's state folder; code with another digest is not executed unless the user allows it.
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
    """Return `POLYMODAL_STATE`, or `polymodal` in the user's state folder (XDG on Linux)."""
    named = os.environ.get("POLYMODAL_STATE")
    return Path(named).expanduser() if named else user_state_path("polymodal")


def digest(code: bytes) -> str:
    """Return the SHA-256 hexadecimal digest."""
    return hashlib.sha256(code).hexdigest()


def allow_here(code: bytes) -> None:
    """Trust a file that the user named, until the process ends."""
    _named_here.add(digest(code))


def is_trusted(code: bytes) -> bool:
    """Return whether this user has trained with this file, or named it to this process."""
    return digest(code) in _named_here or digest(code) in _remembered(state_directory() / TRUSTED)


def remember(files: Mapping[Path, bytes]) -> None:
    """Trust these files from now on, in every process of this user; print a line if this cannot be stored."""
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
    """Return the error for untrusted code. does: what would happen, such as 'would run'."""
    return UserError(
        f"The run {directory} {does} {file} (SHA-256 {digest(code)[:12]}), which was not trained with on this machine; "
        "read the file, then allow it with --trust-code, or trust_code=True in Python."
    )


def _remembered(path: Path) -> dict[str, str]:
    """Read digest -> file. A file that others could have written is ignored."""
    try:
        about = path.stat()
        if os.name == "posix" and (about.st_uid != os.getuid() or about.st_mode & 0o022):
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, known: Mapping[str, str]) -> None:
    """Replace the file atomically, readable by the user only."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(known, file, indent=2)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
