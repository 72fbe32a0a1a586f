"""Corrections of p-values for the number of comparisons."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """The p-values, corrected for how many they are: each is the level at which its hypothesis is rejected (Holm 1979).

    A set of hypotheses that are all true has one below 0.05 in at most 5 % of the cases.
    """
    corrected: dict[Key, float] = {}
    largest = 0.0
    for place, (key, value) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        largest = max(largest, min((len(p_values) - place) * value, 1.0))
        corrected[key] = largest
    return {key: corrected[key] for key in p_values}
