"""Recipe files outside any package, and other code outside this package: executed, copied into runs, trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from polymodal.errors import UserError
from polymodal.training import trust

USER_RECIPE = "recipe.py"  # the copy that a run keeps of a recipe file from outside any package
PACKAGE = "polymodal"
USER_MODULE = "polymodal_own_recipe_"
sources: dict[str, bytes] = {}  # of own modules by name, as they were executed
trained_here: set[type] = set()  # classes outside the package that this process has trained with


def import_file(path: Path) -> Any:
    """Import a Python file outside any package that the user named: trusted until the process ends.

    Raises UserError when it is missing or does not import.
    """
    code = read_code(path)
    module = execute(path, code)
    trust.allow_here(code)
    return module


def read_code(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"There is no file {path}.") from error


def execute(path: Path, code: bytes) -> types.ModuleType:
    """Execute the bytes of a file as a module."""
    name = f"{USER_MODULE}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise UserError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(spec.loader.source_to_code(code, str(path)), vars(module))
    except UserError:
        raise
    except Exception as error:
        del sys.modules[name]
        line = _line_in(error, path)
        raise UserError(f"{path}{line} does not import: {type(error).__name__}: {error}") from error
    sources[name] = code
    return module


def file_of_module(where: str) -> Path | None:
    """Return the file of a module without importing it or its parent packages."""
    if where in sys.modules:
        named = getattr(sys.modules[where], "__file__", None)
        return Path(named) if named and Path(named).is_file() else None
    top, *parts = where.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for number in range(len(parts)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join([top, *parts[: number + 1]])
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec and spec.has_location and spec.origin and Path(spec.origin).is_file() else None


def _line_in(error: Exception, path: Path) -> str:
    """Return ', line 7,' for the line of the user's file where the error was raised."""
    if isinstance(error, SyntaxError):
        number = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        number = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    return f", line {number}," if number else ""


def user_file(recipe: Any) -> Path | None:
    """Return the file of a recipe outside any package, else None."""
    module = sys.modules[type(recipe).__module__]
    if not module.__name__.startswith(USER_MODULE):
        return None
    assert module.__file__ is not None
    return Path(module.__file__)


def save_user_recipe(recipe: Any, directory: Path) -> None:
    """Copy a recipe file outside any package into the run, so that the run can be loaded without the original.

    This code, and that of modules outside this package, is trusted from now on.
    """
    source, copy = user_file(recipe), directory / USER_RECIPE
    if source is not None and source.resolve() != copy.resolve():
        copy.write_bytes(sources[type(recipe).__module__])
    files = {}
    for kind in _classes(recipe):
        module = sys.modules[kind.__module__]
        if module.__name__.partition(".")[0] != PACKAGE:
            trained_here.add(kind)
            if module.__name__ in sources:
                files[Path(module.__file__ or "")] = sources[module.__name__]
            elif (file := file_of_module(module.__name__)) is not None:
                with suppress(OSError):
                    files[file] = file.read_bytes()
    trust.remember(files)


def _classes(instance: Any) -> Iterator[type]:
    """Yield the classes of a dataclass and of its dataclass fields."""
    yield type(instance)
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            yield from _classes(value)
