"""Web pages: the tree of elements, the text in them, and where the browser put them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa


class Node(NamedTuple):
    """An element. parent: its number in the list, -1 for the root. box: pixels, left, top, right, bottom.

    xpath: such as /html/body/div[2]/p. text: what stands directly in it.
    """

    tag: str
    parent: int
    text: str
    xpath: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Webpage:
    """A column of pages: their elements, parents before children."""

    @property
    def storage(self) -> pa.DataType:
        return pa.list_(
            pa.struct(
                {
                    "tag": pa.string(),
                    "parent": pa.int32(),
                    "text": pa.string(),
                    "xpath": pa.string(),
                    "box": pa.list_(pa.int32()),
                }
            )
        )

    def decode(self, value: list[Mapping[str, Any]]) -> list[Node]:
        return [Node(node["tag"], node["parent"], node["text"], node["xpath"], tuple(node["box"])) for node in value]

    def describe(self, value: list[Node]) -> str:
        depth = max((node.xpath.count("/") for node in value), default=0)
        return f"{len(value)} elements, {sum(bool(node.text) for node in value)} with text, {depth} deep"

    def draw(self, value: list[Node], axes: Any) -> None:
        """The boxes of elements with text, in a colour by their depth."""
        from matplotlib.patches import Rectangle

        for node in value:
            left, top, right, bottom = node.box
            place = (left, top), right - left, bottom - top
            if node.text:
                axes.add_patch(Rectangle(*place, facecolor=f"C{node.xpath.count('/') % 10}", alpha=0.5, linewidth=0))
            else:
                axes.add_patch(Rectangle(*place, fill=False, edgecolor="#b0b0b0", linewidth=0.3))
        right = max((node.box[2] for node in value), default=1)
        bottom = max((node.box[3] for node in value), default=1)
        axes.set(xlim=(0, right), ylim=(min(bottom, 2 * right), 0), xticks=[], yticks=[])
        axes.set_aspect("equal")


def xpath_steps(xpath: str) -> list[tuple[str, int]]:
    """'/html/body/div[2]' -> [('html', 1), ('body', 1), ('div', 2)]."""
    steps = []
    for step in xpath.strip("/").split("/"):
        tag, _, place = step.partition("[")
        steps.append((tag, int(place.rstrip("]")) if place else 1))
    return steps
