"""Tab of the page: what can be tried with runs of one capability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from polymodal.serving.service import Service


class PageTab(NamedTuple):
    """runs: those of the services that the tab is for; without any, it is left out. build: add its components."""

    title: str
    runs: Callable[[Sequence[Service]], list[Service]]
    build: Callable[[Sequence[Service]], None]
