"""Files at URLs that are read whole, fetched once to the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from filelock import FileLock

from polymodal.corpora._cache import cache_directory, disk_error
from polymodal.corpora.user_files import first_line
from polymodal.errors import UserError

STATE = ("size", "mtime", "LastModified", "ETag", "etag", "created")  # of what fsspec tells about a file
MAGIC = set("*?[")  # of patterns


def fetched(url: str) -> list[Path]:
    """Return local copies of the files at a URL, which may have a pattern with `*`; they are fetched unless they are
    there already. A file that changed is fetched anew. Raises UserError where there is none, or no network."""
    try:
        system, root = fsspec.core.url_to_fs(url)
        sources = sorted(system.glob(root)) if MAGIC & {*root} and not system.exists(root) else [root]
        copies = [_copy(system, source, url) for source in sources]
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{url} cannot be fetched: {first_line(error)}") from error
    if not copies:
        raise UserError(f"There is no file at {url}.")
    return copies


def _copy(system: Any, source: str, url: str) -> Path:
    parts = [part for part in PurePosixPath(source.partition("://")[2] or source).parts if part not in ("/", "..")]
    file = cache_directory() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16] / Path(*parts)
    folder = file.parent
    info = system.info(source)
    state = json.dumps({name: str(info[name]) for name in STATE if info.get(name) is not None})
    described = folder / f".{file.name}.state"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (file.is_file() and described.is_file() and described.read_text(encoding="utf-8") == state):
                partial = folder / f".{os.getpid()}.partial"
                with system.open(source, "rb") as remote, partial.open("wb") as local:
                    shutil.copyfileobj(remote, local, 1 << 20)
                os.replace(partial, file)
                described.write_text(state, encoding="utf-8")
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):  # of the other end
            raise UserError(f"{url} cannot be fetched: {first_line(error)}") from error
        raise disk_error(error, folder) from error
    return file
