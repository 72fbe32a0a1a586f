"""What a recipe of curation does, step by step, and what a step gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Rejection(NamedTuple):
    """A text that a step of curation left out, and why."""

    reason: str
    text: str


class FilterResult(NamedTuple):
    """What a step of curation made of a page's blocks (`curation.web.PageBlock`)."""

    kept: list[Any]
    dropped: list[Rejection]


CurationStep = Callable[[list[Any]], FilterResult]


@runtime_checkable
class Curation(Protocol):
    """What a recipe of curation does: pages to documents worth training on, step by step."""

    def fit(self, good: Iterable[str], flagged: Iterable[str] = ()) -> Any:
        """What it must know of the language beforehand, from good texts."""
        ...

    def steps(self, known: Any) -> Mapping[str, CurationStep]:
        """Name -> what happens to the blocks of a page; a page without blocks is dropped."""
        ...

    def documents(self, blocks: list[Any]) -> list[list[Any]]:
        """What the blocks that are left of a page are trained on as: one document, or several."""
        ...
