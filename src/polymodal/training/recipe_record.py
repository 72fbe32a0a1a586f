"""Records of recipes in runs, so that a run can be reopened: class and all hyper-parameters.

A record is untrusted data. It names dataclasses of this package, which are constructed from values that match their
fields; code outside the package is imported only if it is trusted (`training/trust.py`).
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polymodal.constraints import validate_constraints
from polymodal.errors import UserError
from polymodal.training import trust
from polymodal.training.recipe_file import (
    PACKAGE,
    USER_MODULE,
    USER_RECIPE,
    execute,
    file_of_module,
    read_code,
    trained_here,
)


def recipe_record(recipe: Any, name: str | None = None) -> dict[str, Any]:
    """Return the record of a recipe: its class, and the value of every hyper-parameter."""
    kind = type(recipe)
    return {
        "name": name or kind.__module__.rpartition(".")[2],
        "class": class_name(kind),
        "values": dataclass_values(recipe),
    }


def class_name(kind: type) -> str:
    """Return the name of a class in records: `module:Name`, or `recipe.py:Name` for a file outside any package."""
    where = USER_RECIPE if kind.__module__.startswith(USER_MODULE) else kind.__module__
    return f"{where}:{kind.__qualname__}"


def recipe_from_record(record: Mapping[str, Any], directory: Path, trust_code: bool = False) -> Any:
    """Rebuild the recipe of a run, with its hyper-parameters.

    trust_code: whether code that the run contains or names may be executed. Raises UserError for untrusted code, a
    missing class, and values that do not match it.
    """
    reader = _Reader(directory, trust_code)
    found = reader.dataclass(reader.named(record["class"]), record["values"], "values")
    if not (hasattr(found, "build") and hasattr(found, "columns")):
        raise UserError(f"{reader.file} names {record['class']}, which is no recipe of a method.")
    try:
        validate_constraints(found)
    except UserError as error:
        raise UserError(f"{reader.file} has a value outside its range: {error}") from error
    return found


def dataclass_values(instance: Any) -> dict[str, Any]:
    """Return JSON values of all fields; a nested dataclass names its class if it is a subclass of the field's type."""
    hints = typing.get_type_hints(type(instance))

    def value(hint: Any, given: Any) -> Any:
        if not dataclasses.is_dataclass(given):
            return copy.deepcopy(given)
        kind = type(given)
        named = {} if kind is hint else {"class": class_name(kind)}
        return named | dataclass_values(given)

    return {
        field.name: value(hints[field.name], getattr(instance, field.name)) for field in dataclasses.fields(instance)
    }


def dataclass_from(kind: Any, values: Mapping[str, Any], directory: Path, place: str) -> Any:
    """Rebuild a dataclass of this package from recorded values. place: their path in the record, for errors.

    Raises UserError for unknown names and values of another type.
    """
    return _Reader(directory, False).dataclass(kind, values, place)


@dataclass(frozen=True)
class _Reader:
    """Constructs dataclasses from the record of a run."""

    directory: Path
    trust_code: bool

    @property
    def file(self) -> Path:
        return self.directory / "run.json"

    def named(self, text: Any) -> Any:
        """Return the dataclass that a record names. Raises UserError for anything else, and for untrusted code."""
        where, _, name = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not (where == USER_RECIPE or all(part.isidentifier() for part in where.split("."))) or not name:
            raise UserError(f"{self.file} names no class of a recipe: {text!r}.")
        if where == USER_RECIPE:
            module = self._own_module
        elif where.partition(".")[0] == PACKAGE:
            module = self._import(where)
        else:
            module = self._foreign(where, name)
        found = vars(module).get(name)
        if found is None:
            raise self._not_there(f"{where}:{name}", f"{where} has no {name}")
        if not (isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == module.__name__):
            raise UserError(f"{self.file} names {text}, which is no dataclass of that module, so no recipe.")
        return found

    @cached_property
    def _own_module(self) -> types.ModuleType:
        """Execute the run's recipe file: exactly the bytes that were checked, without Python's cache."""
        path = self.directory / USER_RECIPE
        code = read_code(path)
        if not (self.trust_code or trust.is_trusted(code)):
            raise trust.untrusted(self.directory, "would run", path, code)
        return execute(path, code)

    def _foreign(self, where: str, name: str) -> types.ModuleType:
        """Import a module outside this package."""
        loaded = sys.modules.get(where)
        if loaded is not None and vars(loaded).get(name) in trained_here:
            return loaded
        file = None if where == "__main__" and name not in vars(loaded) else file_of_module(where)
        if file is None:
            raise self._not_there(f"{where}:{name}", f"there is no file of a module {where}")
        code = file.read_bytes()
        if not (self.trust_code or trust.is_trusted(code)):
            raise trust.untrusted(self.directory, f"would import the module {where},", file, code)
        return self._import(where)

    def _import(self, where: str) -> types.ModuleType:
        try:
            return importlib.import_module(where)
        except ImportError as error:
            raise self._not_there(where, str(error)) from error

    def _not_there(self, what: str, why: str) -> UserError:
        return UserError(
            f"The recipe of {self.directory}, {what}, cannot be imported ({why}); put its folder on PYTHONPATH."
        )

    def dataclass(self, kind: Any, values: Any, place: str) -> Any:
        """Construct a dataclass from recorded values. place: their path in the record, for errors."""
        try:
            hints = typing.get_type_hints(kind)
        except NameError as error:  # of types that are imported for type checkers alone
            raise UserError(f"{self.file} names {class_name(kind)}, which is not made of values.") from error
        known = {field.name for field in dataclasses.fields(kind) if field.init}
        if not isinstance(values, Mapping):
            raise self._wrong(place, values, kind)
        for name in values:
            if name not in known:
                raise UserError(
                    f"{self.file} was made by another version of {class_name(kind)}, which has no field '{name}' "
                    f"({place}); train the run again."
                )
        given = {name: self._value(hints[name], value, f"{place}.{name}") for name, value in values.items()}
        try:
            return kind(**given)
        except UserError:
            raise
        except Exception as error:  # whatever a class raises for values that it does not expect
            raise UserError(
                f"{self.file} was made by another version of {class_name(kind)} ({error}); train the run again."
            ) from error

    def _value(self, hint: Any, given: Any, place: str) -> Any:
        """Convert a JSON value to the type of the field: lists to tuples, objects to dataclasses."""
        kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
        if kind in (typing.Union, types.UnionType):
            return self._one_of(inner, given, place, hint)
        if dataclasses.is_dataclass(kind):
            return self._part(kind, given, place)
        if kind is typing.Literal:
            fits = any(given == choice and type(given) is type(choice) for choice in inner)
        elif kind is float:
            fits = isinstance(given, int | float) and not isinstance(given, bool)
        elif kind is int:
            fits = isinstance(given, int) and not isinstance(given, bool)
        elif kind in (None, type(None)):
            fits = given is None
        elif isinstance(kind, type) and issubclass(kind, Mapping):
            fits = isinstance(given, Mapping)
        elif isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str:
            fits = isinstance(given, list | tuple)
            if fits and inner:
                return self._items(inner, given, place, hint)
        elif isinstance(kind, type):
            fits = isinstance(given, kind)
        else:
            fits = True  # a hint that says nothing of values, such as Any
        if not fits:
            raise self._wrong(place, given, hint)
        return tuple(given) if isinstance(given, list) else given

    def _one_of(self, hints: Sequence[Any], given: Any, place: str, union: Any) -> Any:
        for hint in hints:
            if not dataclasses.is_dataclass(hint) or isinstance(given, Mapping):
                try:
                    return self._value(hint, given, place)
                except _Wrong:
                    continue
        raise self._wrong(place, given, union)

    def _part(self, kind: Any, given: Any, place: str) -> Any:
        """Construct a nested dataclass, of the field's class or the one that is named."""
        if not isinstance(given, Mapping):
            raise self._wrong(place, given, kind)
        values = dict(given)
        own = self.named(values.pop("class")) if "class" in values else kind
        if not issubclass(own, kind):
            raise self._wrong(place, class_name(own), kind)
        return self.dataclass(own, values, place)

    def _items(self, hints: Sequence[Any], given: Sequence[Any], place: str, hint: Any) -> tuple[Any, ...]:
        each = [hints[0]] * len(given) if len(hints) == 1 or hints[-1] is Ellipsis else list(hints)
        if len(each) != len(given):
            raise self._wrong(place, given, hint)
        return tuple(
            self._value(of, item, f"{place}[{number}]")
            for number, (of, item) in enumerate(zip(each, given, strict=True))
        )

    def _wrong(self, place: str, given: Any, hint: Any) -> UserError:
        wanted = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
        shown = repr(given)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return _Wrong(f"{self.file} has {shown} for {place}, which is no {wanted}; train the run again.")


class _Wrong(UserError):
    """Value of another type than its field."""
