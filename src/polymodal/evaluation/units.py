"""Values of metrics as tables and axes show them."""

from __future__ import annotations


def scale(unit: str, value: float) -> tuple[int, int]:
    """The factor that a value is shown with, and its number of digits after the point."""
    if unit == "percent":
        return 100, 1
    return 1, 1 if unit == "rank" or abs(value) >= 10 else 3


def number(unit: str, value: float) -> str:
    """'25.3 %', '12.0' or '0.031': a value as tables show it."""
    factor, digits = scale(unit, value)
    return f"{factor * value:.{digits}f}" + (" %" if unit == "percent" else "")


def axis_label(unit: str) -> str:
    """The label of an axis that shows values of a unit."""
    return "%" if unit == "percent" else unit
