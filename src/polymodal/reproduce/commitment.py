"""What is written down before a claim is measured, and the results that it had before.

A claim is measured once for a version of its code. Before the first run, `committed.json` says which claim it is (a
hash of arms, corpus, metrics, budget, seeds and tuning grid) and which code measures it (a hash of the recipes and of
what they import). A finished measurement of the same claim and code is not made again unless it is asked for, and every
result keeps those before it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polymodal import source
from polymodal.claim import Claim
from polymodal.errors import UserError
from polymodal.training.recipe_record import class_name
from polymodal.training.run import write_json
from polymodal.types import Budget

CLAIM, COMMITTED, PREVIOUS = "claim.json", "committed.json", "previous.json"
KEPT = ("verdict", "why", "metric", "difference", "seeds", "budget", "committed", "statistics")


def claim_version(claim: Claim) -> str:
    """A hash of all that a claim says: sentence, arms with every hyper-parameter, corpus, metrics, budget, seeds."""
    return hashlib.sha256(json.dumps(_plain(claim), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """The value as JSON has it, with the classes of dataclasses and the names of functions."""
    if isinstance(value, Budget):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        written = [field for field in dataclasses.fields(value) if not field.metadata or getattr(value, field.name)]
        fields = {field.name: _plain(getattr(value, field.name)) for field in written}
        return {"class": class_name(type(value))} | fields
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if callable(value):
        return f"{value.__module__}:{getattr(value, '__qualname__', value)}"
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def code_version(claim: Claim) -> str:
    """A hash of the recipes of a claim and of what they import from the package."""
    return source.code_version(_modules(claim))


def _modules(value: Any) -> set[str]:
    """Where the classes and functions of a claim are written, but the classes of claims themselves."""
    if isinstance(value, Mapping):
        return set().union(*map(_modules, value.values()))
    if isinstance(value, tuple | list):
        return set().union(*map(_modules, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = set().union(*(_modules(getattr(value, field.name)) for field in dataclasses.fields(value)))
        return inner if isinstance(value, Claim | Budget) else inner | {type(value).__module__}
    return {value.__module__} if callable(value) else set()


def commitment(claim: Claim, budget: Budget, seeds: int, tune: bool) -> dict[str, Any]:
    """What is fixed before a measurement. tune: whether the arms are tuned first."""
    return {
        "claim": claim_version(claim),
        "code": code_version(claim),
        "budget": str(budget),
        "seeds": seeds,
        "tuned": tune,
    }


def commit(planned: Mapping[str, Any], out: Path, recorded: Path | None, again: bool) -> dict[str, Any] | None:
    """Write down what is to be measured; returns the last finished result, if there is one.

    recorded: a result that is kept elsewhere, such as in the package. `previous.json` keeps the last result for a
    measurement that is stopped and goes on. What `out` holds of another measurement, or of this one when it is made
    again, is moved to a folder beside it. Raises UserError when the measurement was made and
    is not to be made again.
    """
    finished, begun = _read(out / CLAIM), _read(out / COMMITTED)
    held = finished or (_read(recorded) if recorded else None)
    previous = finished or _read(out / PREVIOUS) or held  # a measurement that was stopped keeps those before it
    if held and _same(held.get("committed"), planned) and not again:
        raise UserError(
            f"This claim was measured with this code already: {held['verdict']} "
            f"({(out / CLAIM) if finished else recorded}). "
            "Give --again to measure it once more; the new result keeps the old one."
        )
    if finished or (begun and not _same(begun, planned)):
        _move_aside(out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / COMMITTED).is_file():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if previous is not None:
            write_json(out / PREVIOUS, previous)
        write_json(out / COMMITTED, {**planned, "time": now})
    return previous


def _same(committed: Mapping[str, Any] | None, planned: Mapping[str, Any]) -> bool:
    return committed is not None and all(committed.get(name) == value for name, value in planned.items())


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _move_aside(out: Path) -> None:
    number = 1
    while (place := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    out.rename(place)


def history(previous: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What a claim had come to before, the earliest first."""
    if previous is None:
        return []
    return [*previous.get("history", ()), {name: previous[name] for name in KEPT if name in previous}]


def with_history(result: Mapping[str, Any], out: Path, previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """A result with what was committed before it, and with the results before it."""
    return {**result, "committed": _read(out / COMMITTED), "history": history(previous)}
