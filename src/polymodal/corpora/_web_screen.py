"""What an expert sees of a page of MiniWoB, and the moves that it makes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Element(NamedTuple):
    """Visible element.

    number: id, the same on all screens of an episode. parent: id of the parent, -1 for the root. text: including that
    of descendants. kind: of a form field, such as checkbox.
    """

    number: int
    parent: int
    tag: str
    text: str
    classes: tuple[str, ...]
    kind: str
    id: str
    color: str


class Move(NamedTuple):
    """Move: click an element, type a text into it, or select the option with a text."""

    name: str
    element: Element
    text: str = ""


class Lost(Exception):
    """The expert does not find an element on the screen."""


@dataclass(frozen=True)
class Screen:
    """Visible elements of a page, without those of the instruction."""

    elements: tuple[Element, ...]

    def all(self, tag: str = "", classes: str = "", text: str | None = None, kind: str = "") -> list[Element]:
        """Return the elements with this tag, class, full text and kind, where given."""
        return [
            element
            for element in self.elements
            if tag in ("", element.tag)
            and (not classes or classes in element.classes)
            and text in (None, element.text)
            and kind in ("", element.kind)
        ]

    def first(self, tag: str = "", classes: str = "", text: str | None = None, kind: str = "") -> Element:
        """Return the first such element. Raises Lost where there is none."""
        return any_of(self.all(tag, classes, text, kind))

    def around(self, element: Element) -> Iterator[Element]:
        """Return the ancestors of an element, from its parent on."""
        of = {other.number: other for other in self.elements}
        while (parent := of.get(element.parent)) is not None:
            element = parent
            yield element

    def inside(self, element: Element) -> Screen:
        """Return the descendants of an element; parents come before children."""
        numbers, descendants = {element.number}, []
        for other in self.elements:
            if other.parent in numbers:
                numbers.add(other.number)
                descendants.append(other)
        return Screen(tuple(descendants))


Moves = Generator[Move, Screen, None]
Expert = Callable[[str, Screen], Moves]


def click(element: Element) -> Move:
    return Move("click", element)


def any_of(elements: Iterable[Element]) -> Element:
    """Return the first element. Raises Lost where there is none."""
    for element in elements:
        return element
    raise Lost
