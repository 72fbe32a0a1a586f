"""Hyper-parameters with values as users write them, `learning-rate=1e-4,3e-4`, checked before torch is imported."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from polymodal.constraints import validate_constraints
from polymodal.errors import UserError
from polymodal.hyper_parameters import leaves, with_value

SCALARS = {int: "a whole number", float: "a number", str: "a text"}


def parsed_grid(texts: Sequence[str], recipe: Any) -> dict[str, list[Any]] | None:
    """Return values by the name of a hyper-parameter; None without any text, for the recipe's own grid.

    recipe: with the values of its flags. Raises UserError for texts of another form, and for names, types and ranges
    that the recipe does not have.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, hint, values = _split(text, recipe, "--grid")
        if not values:
            raise UserError(f"--grid takes NAME=VALUE,VALUE, such as optimizer.learning-rate=1e-4,3e-4, not '{text}'.")
        if name in grid:
            raise UserError(f"--grid names {_flag(name)} twice; write all of its values after one name.")
        grid[name] = [_value(one.strip(), hint, name, "--grid") for one in values.split(",")]
        for value in grid[name]:
            validate_constraints(with_value(recipe, name, value))
    return grid or None


def varied_values(texts: Sequence[str], recipe: Any) -> dict[str, list[Any]]:
    """Return values by the name of a hyper-parameter, of a choice that is named alone all that there are.

    Raises UserError as `parsed_grid` does, and for a name alone that is no choice.
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        name, hint, values = _split(text, recipe, "--vary")
        if name in varied:
            raise UserError(f"--vary names {_flag(name)} twice; write all of its values after one name.")
        choices = [True, False] if hint is bool else list(typing.get_args(hint)) * (typing.get_origin(hint) is Literal)
        if not values and not choices:
            raise UserError(f"{_flag(name)} is no choice; write its values, such as --vary {_flag(name)}=VALUE,VALUE.")
        varied[name] = [_value(one.strip(), hint, name, "--vary") for one in values.split(",")] if values else choices
        for value in varied[name] if values else ():
            validate_constraints(with_value(recipe, name, value))
    return varied


def _split(text: str, recipe: Any, option: str) -> tuple[str, Any, str]:
    """Return name, type and values of 'optimizer.learning-rate=1e-4,3e-4'."""
    fields = {name: typing.get_type_hints(type(owner))[field.name] for name, owner, field in leaves(recipe)}
    flag, _, values = text.partition("=")
    if not flag.strip():
        raise UserError(f"{option} takes NAME=VALUE,VALUE, such as optimizer.learning-rate=1e-4,3e-4, not '{text}'.")
    name = _field(flag.strip().lstrip("-").replace("-", "_"), fields)
    return name, fields[name], values


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


def _value(text: str, hint: Any, name: str, option: str) -> Any:
    """Return a text as a value of this type."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in parts and text.lower() == "none":
            return None
        (hint, *others) = [part for part in parts if part is not type(None)]
        parts, origin = typing.get_args(hint), typing.get_origin(hint)
        if others:
            raise UserError(f"{_flag(name)} takes values of several kinds, which {option} cannot hold.")
    if origin is Literal:
        if text in map(str, parts):
            return next(part for part in parts if str(part) == text)
        raise UserError(f"{_flag(name)} is one of {', '.join(map(str, parts))}, not '{text}'.")
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UserError(f"{_flag(name)} is true or false, not '{text}'.")
    if hint not in SCALARS:
        raise UserError(f"{_flag(name)} is no single value, so {option} cannot hold it.")
    try:
        return hint(text)
    except ValueError:
        raise UserError(f"{_flag(name)} is {SCALARS[hint]}, not '{text}'.") from None
