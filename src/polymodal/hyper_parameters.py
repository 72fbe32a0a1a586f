"""Hyper-parameters of a recipe by name, those of a configuration in it with a dot: `optimizer.learning_rate`.

Importing this module is cheap: no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from polymodal.errors import UserError


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Yield the name of every hyper-parameter, the dataclass that holds it, and its field there."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", config, field


def with_value(recipe: Any, name: str, value: Any) -> Any:
    """A recipe with another value of a hyper-parameter. name: of a field, `optimizer.learning_rate` of one inside it.

    A field that the recipe has not itself is looked for in its `optimizer`. Raises UserError when there is none.
    """
    first, _, rest = name.partition(".")
    names = {field.name for field in dataclasses.fields(recipe)} if dataclasses.is_dataclass(recipe) else set()
    if first not in names and "optimizer" in names and not rest:
        first, rest = "optimizer", first
    if first not in names:
        raise UserError(f"The grid names '{name}', which is no hyper-parameter of {type(recipe).__module__}.")
    changed = with_value(getattr(recipe, first), rest, value) if rest else value
    return dataclasses.replace(recipe, **{first: changed})
