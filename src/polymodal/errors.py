"""Errors a user can cause: one sentence that says what to do, exit status 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right; the message is one sentence that says how."""


class UnreadableExample(ValueError):
    """An example that cannot be used; the message says why. Loaders skip, count and name it."""


def unusable(error: UnreadableExample) -> UserError:
    """The error for a value that the user named, such as an image that is none: the reason as a sentence."""
    reason = str(error)
    return UserError(f"{reason[0].upper()}{reason[1:]}.")


def needs(package: str, extra: str, what: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"{what} needs the package {package}: pip install 'polymodal[{extra}]'.")


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest existing one.

    >>> str(unknown("recipe", "clpi", ["clip", "siglip"]))
    "There is no recipe 'clpi'; did you mean 'clip'?"
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    advice = f"did you mean '{nearest[0]}'?" if nearest else f"choose one of: {', '.join(known)}."
    return UserError(f"There is no {kind} '{name}'; {advice}")
