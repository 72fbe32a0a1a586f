"""How a run remembers its recipe, so that it can be opened again: where the class is, and every hyper-parameter."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import importlib.util
import shutil
import sys
import traceback
import typing
from pathlib import Path
from typing import Any

from polymodal.errors import UserError

OWN_RECIPE = "recipe.py"  # the copy that a run keeps of a recipe file from outside any package
_OWN_MODULE = "polymodal_own_recipe_"


def recipe_record(recipe: Any, name: str | None = None) -> dict[str, Any]:
    """How a run names its recipe: where its class is, and the value of every hyper-parameter."""
    kind = type(recipe)
    where = OWN_RECIPE if own_file(recipe) else kind.__module__
    return {
        "name": name or kind.__module__.rpartition(".")[2],
        "class": f"{where}:{kind.__qualname__}",
        "values": dataclass_values(recipe),
    }


def own_file(recipe: Any) -> Path | None:
    """The file of a recipe that is in no package; None for one that is."""
    module = sys.modules[type(recipe).__module__]
    if not module.__name__.startswith(_OWN_MODULE):
        return None
    assert module.__file__ is not None
    return Path(module.__file__)


def keep_own_recipe(recipe: Any, directory: Path) -> None:
    """Copy a recipe file that is in no package into the run, so that the run can be read without the original."""
    source, copy = own_file(recipe), directory / OWN_RECIPE
    if source is not None and source.resolve() != copy.resolve():
        shutil.copyfile(source, copy)


def recipe_from_record(record: dict[str, Any], directory: Path) -> Any:
    """The recipe of a run, with its hyper-parameters. Raises UserError when its class is not there any more."""
    where, _, name = record["class"].partition(":")
    try:
        module = import_file(directory / where) if where == OWN_RECIPE else importlib.import_module(where)
        kind = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"The recipe of {directory}, {record['class']}, cannot be imported ({error}); put its folder on PYTHONPATH."
        ) from error
    try:
        return dataclass_from(kind, record["values"])
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{directory} was made by another version of {record['class']} ({error}); train it again."
        ) from error


def dataclass_values(instance: Any) -> dict[str, Any]:
    """JSON values of all fields; a dataclass in a field says which it is where that is not the field's own type."""
    hints = typing.get_type_hints(type(instance))

    def value(hint: Any, given: Any) -> Any:
        if not dataclasses.is_dataclass(given):
            return copy.deepcopy(given)
        kind = type(given)
        named = {} if kind is hint else {"class": f"{kind.__module__}:{kind.__qualname__}"}
        return named | dataclass_values(given)

    return {
        field.name: value(hints[field.name], getattr(instance, field.name)) for field in dataclasses.fields(instance)
    }


def dataclass_from(kind: Any, values: dict[str, Any]) -> Any:
    """A frozen dataclass from what `dataclass_values` and JSON made of it."""
    hints = typing.get_type_hints(kind)

    def value(hint: Any, given: Any) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(given, dict):
            module, _, name = given.get("class", "").partition(":")
            kind = getattr(importlib.import_module(module), name) if module else hint
            return dataclass_from(kind, {key: entry for key, entry in given.items() if key != "class"})
        return tuple(given) if isinstance(given, list) else given

    return kind(**{name: value(hints[name], given) for name, given in values.items()})


def import_file(path: Path) -> Any:
    """Import a Python file that is in no package. Raises UserError when it is missing or does not import."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    name = f"{_OWN_MODULE}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        del sys.modules[name]
        line = _line_in(error, path)
        raise UserError(f"{path}{line} does not import: {type(error).__name__}: {error}") from error
    return module


def _line_in(error: Exception, path: Path) -> str:
    """', line 7,' for the line of the user's file where the error arose."""
    if isinstance(error, SyntaxError):
        number = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        number = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    return f", line {number}," if number else ""
