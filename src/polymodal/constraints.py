"""Ranges of the numbers that a user can give, as part of their types, and one check of them all."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

from polymodal.errors import UserError

PositiveInt = Annotated[int, Ge(1)]
AtLeastTwo = Annotated[int, Ge(2)]
NonNegativeInt = Annotated[int, Ge(0)]
ContextLength = Annotated[int, Ge(3)]
"""Places of a text with its start and end mark."""
Port = Annotated[int, Interval(ge=0, le=65535)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
UnitInterval = Annotated[float, Interval(ge=0, le=1)]
TailFraction = Annotated[float, Interval(ge=0, lt=0.5)]
"""Fraction of the values at each of both ends."""
DecayRate = Annotated[float, Interval(ge=0, lt=1)]
PositiveUnitInterval = Annotated[float, Interval(gt=0, le=1)]


class Increasing:
    """Marks a tuple whose numbers do not fall."""


UnitRange = Annotated[tuple[UnitInterval, UnitInterval], Increasing()]
"""A smallest and a largest one."""
NonNegativeRange = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Increasing()]


def validate_constraints(options: Any, prefix: str = "") -> None:
    """Raises UserError for the first number of a dataclass, or of one inside it, that is outside its range.

    prefix: of the flags, such as `image.` for those of the image tower.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            validate_constraints(value, f"{name}.")
        for number, range_ in _numbers(value, hints[field.name]):
            if not _inside(number, range_):
                raise UserError(f"--{name.replace('_', '-')} is {_described(range_)}, not {number}.")
        if _increases(hints[field.name]) and list(value) != sorted(value):
            given = " ".join(map(str, value))
            raise UserError(f"--{name.replace('_', '-')} takes the smallest number first, not {given}.")


SCALARS: Mapping[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}


def validate_types(options: Any, prefix: str = "") -> None:
    """Raises UserError for the first field of a dataclass, or of one inside it, whose value is of a wrong kind.

    Numbers, texts, choices and tuples of them are checked; of a field that holds an object, only that it is given no
    plain value. prefix: of the names, such as `optimizer.`.
    """
    hints = _hints(type(options))
    for field in dataclasses.fields(options):
        value, hint, name = getattr(options, field.name), hints.get(field.name, Any), f"{prefix}{field.name}"
        if not _fits(value, hint):
            raise UserError(f"{name} takes {_kind(hint)}, not {value!r} ({type(value).__name__}).")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            validate_types(value, f"{name}.")


def _hints(kind: type) -> dict[str, Any]:
    """The types of the fields; none where a name in them is not known at run time."""
    try:
        return typing.get_type_hints(kind)
    except (NameError, AttributeError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value can be of a type; True for types that are not looked into."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        each = [parts[0]] * len(value) if parts[-1:] == (Ellipsis,) else list(parts)
        return len(each) == len(value) and all(map(_fits, value, each))
    if hint in SCALARS:
        is_bool = isinstance(value, bool) or type(value).__name__ == "bool"  # numpy's bool, too
        return isinstance(value, SCALARS[hint][0]) and (hint is bool or not is_bool)
    if isinstance(hint, type) and hint is not object and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint) or not isinstance(value, str | numbers.Number | types.NoneType)
    return True


def _kind(hint: Any) -> str:
    """What a field takes, in words: 'a number', 'one of cosine, linear', 'an ImageEncoder'."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if part is types.NoneType else _kind(part) for part in parts)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        several = parts[-1:] == (Ellipsis,)
        return f"a tuple, each {_kind(parts[0])}" if several else f"a tuple of {len(parts)}, {_kind(parts[0])} each"
    name = getattr(hint, "__name__", str(hint))
    return SCALARS[hint][1] if hint in SCALARS else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def describe_constraint(hint: Any) -> str:
    """What the numbers of a type are, such as 'at least 1'; '' where any will do."""
    if own := _interval(hint):
        return _described(own)
    return next(filter(None, map(describe_constraint, typing.get_args(hint))), "")


def _numbers(value: Any, hint: Any) -> Iterator[tuple[float, Interval]]:
    """Each number of a value that has a range, with it."""
    own, parts = _interval(hint), typing.get_args(hint)
    if own is not None and isinstance(value, int | float):
        yield value, own
    elif own is None and _marks(hint):
        yield from _numbers(value, parts[0])
    elif isinstance(value, tuple):
        each = [parts[0]] * len(value) if len(parts) == 2 and parts[1] is Ellipsis else parts
        for one, part in zip(value, each, strict=False):
            yield from _numbers(one, part)
    elif value is not None:
        for part in parts:  # of a union, the part that has a range
            if _interval(part) is not None:
                yield from _numbers(value, part)


def _interval(hint: Any) -> Interval | None:
    """The range that a type itself has."""
    for one in _marks(hint):
        if isinstance(one, Interval):
            return one
        if isinstance(one, Ge):
            return Interval(ge=one.ge)
        if isinstance(one, Gt):
            return Interval(gt=one.gt)
    return None


def _increases(hint: Any) -> bool:
    return any(isinstance(one, Increasing) for one in _marks(hint))


def _marks(hint: Any) -> tuple[Any, ...]:
    """What a type is annotated with."""
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()


def _inside(number: Any, own: Interval) -> bool:
    """False for a number that is none (nan), too."""
    return bool(
        number == number
        and (own.ge is None or number >= own.ge)
        and (own.gt is None or number > own.gt)
        and (own.le is None or number <= own.le)
        and (own.lt is None or number < own.lt)
    )


def _described(own: Interval) -> str:
    """'at least 0 and below 1', or 'from 0 to 1'."""
    if own.ge is not None and own.le is not None:
        return f"from {own.ge} to {own.le}"
    words = {"at least": own.ge, "above": own.gt, "at most": own.le, "below": own.lt}
    return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)
