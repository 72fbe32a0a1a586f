"""Batches held to their TypedDicts: keys, types, and shapes that agree within a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, get_origin, get_type_hints, is_typeddict

from jaxtyping import jaxtyped


def batch_type(recipe: Any, make: str) -> Any:
    """The TypedDict that a recipe's method of batches returns."""
    declared = get_type_hints(getattr(type(recipe), make))["return"]
    assert is_typeddict(declared), f"{type(recipe)}.{make} returns {declared}, which is no TypedDict"
    return declared


def check_batch(batch: Mapping[str, Any], declared: Any) -> None:
    """Raise AssertionError for a key that is missing or not declared, and for a value of another type or shape."""
    kinds = get_type_hints(declared)
    extras = get_type_hints(declared, include_extras=True)
    required = {name for name in declared.__required_keys__ if get_origin(extras[name]) is not NotRequired}
    assert required <= batch.keys() <= kinds.keys(), f"{declared.__name__}: {sorted(required)}, not {sorted(batch)}"
    with jaxtyped("context"):  # in which a name of a dimension has one size
        for name, value in batch.items():
            shape = getattr(value, "shape", type(value))
            assert isinstance(value, kinds[name]), f"{declared.__name__}[{name!r}] is no {kinds[name]}: {shape}"
