"""Values to tune as users write them: `optimizer.learning-rate=1e-4,3e-4`, checked before torch is imported."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from polymodal.constraints import validate_constraints
from polymodal.errors import UserError

SCALARS = {int: "a whole number", float: "a number", str: "a text"}


def parsed_grid(texts: Sequence[str], recipe: Any) -> dict[str, list[Any]] | None:
    """Return values by the name of a hyper-parameter; None without any text, for the recipe's own grid.

    recipe: with the values of its flags. Raises UserError for texts of another form, and for names, types and ranges
    that the recipe does not have.
    """
    fields = dict(_fields(recipe))
    grid: dict[str, list[Any]] = {}
    for text in texts:
        flag, equals, values = text.partition("=")
        if not equals or not flag.strip():
            raise UserError(f"--grid takes NAME=VALUE,VALUE, such as optimizer.learning-rate=1e-4,3e-4, not '{text}'.")
        name = _field(flag.strip().lstrip("-").replace("-", "_"), fields)
        if name in grid:
            raise UserError(f"--grid names {_flag(name)} twice; write all of its values after one name.")
        grid[name] = [_value(one.strip(), fields[name], name) for one in values.split(",")]
        for value in grid[name]:
            validate_constraints(_with(recipe, name, value))
    return grid or None


def _with(values: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return dataclasses.replace(values, **{first: _with(getattr(values, first), rest, value) if rest else value})


def _fields(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the type of every hyper-parameter, those of nested ones with a dot."""
    hints = typing.get_type_hints(type(values))
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


def _field(name: str, fields: dict[str, Any]) -> str:
    """Return the whole name; flags of the optimizer may be written without its prefix, as elsewhere."""
    for whole in (name, f"optimizer.{name}"):
        if whole in fields:
            return whole
    last = {one.rpartition(".")[2]: one for one in reversed(fields)}
    near = difflib.get_close_matches(name, [*fields, *last], n=1, cutoff=0.5)
    hint = f"did you mean {_flag(last.get(near[0], near[0]))}?" if near else "`polymodal show RECIPE` lists them."
    raise UserError(f"The recipe has no hyper-parameter {_flag(name)}; {hint}")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _value(text: str, hint: Any, name: str) -> Any:
    """Return a text as a value of this type."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in parts and text.lower() == "none":
            return None
        (hint, *others) = [part for part in parts if part is not type(None)]
        parts, origin = typing.get_args(hint), typing.get_origin(hint)
        if others:
            raise UserError(f"{_flag(name)} takes values of several kinds, which --grid cannot hold.")
    if origin is typing.Literal:
        if text in map(str, parts):
            return next(part for part in parts if str(part) == text)
        raise UserError(f"{_flag(name)} is one of {', '.join(map(str, parts))}, not '{text}'.")
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UserError(f"{_flag(name)} is true or false, not '{text}'.")
    if hint not in SCALARS:
        raise UserError(f"{_flag(name)} is no single value, so --grid cannot hold it.")
    try:
        return hint(text)
    except ValueError:
        raise UserError(f"{_flag(name)} is {SCALARS[hint]}, not '{text}'.") from None
