"""Several ways to do one thing, timed in turn: whatever slows the machine for a while slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def seconds_in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of every round of each way."""
    times: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(rounds):
        for label, way in ways.items():
            begin = time.perf_counter()
            way()
            times[label].append(time.perf_counter() - begin)
    return times


def median_ratio(times: list[float], base: list[float]) -> float:
    """The median over rounds of one way's time by another's."""
    return statistics.median(own / other for own, other in zip(times, base, strict=True))
