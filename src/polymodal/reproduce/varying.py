"""Variants of a recipe that differ in one hyper-parameter at a time."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from polymodal.constraints import validate_constraints
from polymodal.errors import UserError
from polymodal.hyper_parameters import with_value


def one_at_a_time(recipe: Any, axes: Mapping[str, Sequence[Any]], label: str = "as given") -> dict[str, Any]:
    """Return the recipe under its label, and each variant under `name=value`.

    axes: values by the name of a hyper-parameter, `optimizer.learning_rate` of one in a configuration. The recipe's own
    values make no variant. Values that the recipe refuses in this combination are left out, with its reason on stderr.
    Raises UserError where none is left.

    Example: `pm.compare(one_at_a_time(clip.Recipe(), {"image.pool_type": ("cls", "avg")}), "emoji", "60s")`
    """
    variants = {label: recipe}
    for name, values in axes.items():
        for value in values:
            try:
                validate_constraints(variant := with_value(recipe, name, value))
            except UserError as error:
                print(f"{name}={value} is left out: {error}", file=sys.stderr)
                continue
            if variant != recipe:
                variants[f"{name}={value}"] = variant
    if len(variants) == 1:
        raise UserError(f"No other value of {', '.join(axes)} is possible with {label}.")
    return variants
