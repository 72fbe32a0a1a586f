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
    return _parsed(texts, recipe, "--grid") or None


def varied_values(texts: Sequence[str], recipe: Any) -> dict[str, list[Any]]:
    """Return values by the name of a hyper-parameter, of a choice that is named alone all that there are.

    Raises UserError as `parsed_grid` does, and for a name alone that is no choice.
    """
    return _parsed(texts, recipe, "--vary")


def _parsed(texts: Sequence[str], recipe: Any, option: str) -> dict[str, list[Any]]:
    """Return the values of `NAME=VALUE,VALUE`; --vary also takes the name of a choice alone, for all of its values."""
    fields = {name: typing.get_type_hints(type(owner))[field.name] for name, owner, field in leaves(recipe)}
    parsed: dict[str, list[Any]] = {}
    for text in texts:
        flag, _, values = text.partition("=")
        if not flag.strip() or (not values and option == "--grid"):
            raise UserError(
                f"{option} takes NAME=VALUE,VALUE, such as optimizer.learning-rate=1e-4,3e-4, not '{text}'."
            )
        name = _field(flag.strip().lstrip("-").replace("-", "_"), fields)
        if name in parsed:
            raise UserError(f"{option} names {_flag(name)} twice; write all of its values after one name.")
        if not values:
            parsed[name] = _choices(name, fields[name])
            continue
        parsed[name] = [_value(one.strip(), fields[name], name, option) for one in values.split(",")]
        for value in parsed[name]:
            validate_constraints(with_value(recipe, name, value))
    return parsed


def _choices(name: str, hint: Any) -> list[Any]:
    """Return all values of a choice. Raises UserError for other types."""
    if hint is bool:
        return [True, False]
    if typing.get_origin(hint) is not Literal:
        raise UserError(f"{_flag(name)} is no choice; write its values, such as --vary {_flag(name)}=VALUE,VALUE.")
    return [*typing.get_args(hint)]


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
