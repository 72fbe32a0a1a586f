"""Conditions that clients of the server send, as filters of the index: the engine runs no expression of theirs.

They are parsed and bounded (`serving.filter_syntax`), and only the parsed form is written for the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from polymodal.errors import UserError
from polymodal.serving.filter_syntax import (
    Among,
    Between,
    Comparison,
    Condition,
    Conjunction,
    Disjunction,
    Literal,
    Missing,
    Negation,
    parse,
)

_OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def engine_filter(text: str, columns: Mapping[str, pa.DataType]) -> str:
    """Parse a client's condition and write it as an expression of LanceDB.

    Args:
        columns: those that a condition may name, with their types; others than strings, numbers and booleans are
            left out.

    Raises UserError for anything outside the grammar or its bounds, an unknown column, and a value of another type.
    """
    allowed = {name: kind for name, kind in columns.items() if _kind(kind) and re.fullmatch(r"\w+", name)}
    return compiled(parse(text, tuple(allowed)), allowed)


def compiled(condition: Condition, columns: Mapping[str, pa.DataType], negated: bool = False) -> str:
    """Write a condition, or its negation, as an expression of LanceDB, whose parser allows few NOT ( inside each other.

    Negations therefore move to the comparisons by De Morgan's laws, which also hold for missing values.
    Raises UserError for an unknown column and a value of another type.
    """
    if isinstance(condition, Negation):
        return compiled(condition.part, columns, not negated)
    if isinstance(condition, Conjunction | Disjunction):
        joint = " AND " if isinstance(condition, Conjunction) is not negated else " OR "
        parts = [compiled(part, columns, negated) for part in condition.parts]
        return joint.join(
            part if _is_leaf(of) else f"({part})" for of, part in zip(condition.parts, parts, strict=True)
        )
    kind = columns.get(condition.column)
    if kind is None:
        raise UserError(f"There is no column {condition.column} in the index; there are {', '.join(columns)}.")
    name = f"`{condition.column}`"

    def value(literal: Literal) -> str:
        return _written(literal, condition.column, kind)

    if isinstance(condition, Comparison):
        if _kind(kind) == "bool" and condition.operator not in ("=", "!="):
            raise UserError(f"The column {condition.column} is true or false, which only = and != compare.")
        operator = _OPPOSITE[condition.operator] if negated else condition.operator
        return f"{name} {operator} {value(condition.value)}"
    not_ = "NOT " if condition.negated is not negated else ""
    if isinstance(condition, Missing):
        return f"{name} IS {not_}NULL"
    if isinstance(condition, Among):
        among = f"{name} {not_}IN ({', '.join(map(value, condition.values))})"
        # The engine joins NOT IN of a column by OR to one list and, where that is empty, also takes missing values.
        return f"({name} IS NOT NULL AND {among})" if not_ else among
    if isinstance(condition, Between):
        if _kind(kind) == "bool":
            raise UserError(f"The column {condition.column} is true or false, which only = and != compare.")
        return f"{name} {not_}BETWEEN {value(condition.low)} AND {value(condition.high)}"
    if _kind(kind) != "string":
        raise UserError(f"The column {condition.column} is no string, so LIKE does not apply to it.")
    return f"{name} {not_}LIKE {value(condition.pattern)}"


def _is_leaf(condition: Condition) -> bool:
    while isinstance(condition, Negation):
        condition = condition.part
    return not isinstance(condition, Conjunction | Disjunction)


def _kind(of: pa.DataType) -> str | None:
    """Return string, bool, int or float; None for types without comparisons."""
    if pa.types.is_string(of) or pa.types.is_large_string(of):
        return "string"
    if pa.types.is_boolean(of):
        return "bool"
    if pa.types.is_integer(of):
        return "int"
    return "float" if pa.types.is_floating(of) else None


def _written(literal: Literal, column: str, of: pa.DataType) -> str:
    """Return a literal in the engine's syntax. Raises UserError for a value that the column's type does not hold."""
    kind = _kind(of)
    if kind == "string":
        if not isinstance(literal, str):
            raise UserError(f"The column {column} holds strings; write the value in single quotes.")
        return "'" + literal.replace("'", "''") + "'"
    if kind == "bool":
        if not isinstance(literal, bool):
            raise UserError(f"The column {column} is true or false, and is compared with true or false alone.")
        return "true" if literal else "false"
    if isinstance(literal, str | bool):
        raise UserError(f"The column {column} holds numbers, and is compared with numbers alone.")
    if kind == "float":
        largest = float(np.finfo(of.to_pandas_dtype()).max)
        if abs(float(literal)) > largest:
            raise UserError(f"The column {column} holds numbers of a magnitude of at most {largest:g}.")
        return repr(float(literal))
    about = np.iinfo(of.to_pandas_dtype())
    low = max(int(about.min), 1 - 2**63)  # the engine takes -2^63 for a floating-point number
    if not isinstance(literal, int) or not low <= literal <= int(about.max):
        raise UserError(f"The column {column} holds whole numbers from {low} to {about.max}, so no {literal!r}.")
    return str(literal)
