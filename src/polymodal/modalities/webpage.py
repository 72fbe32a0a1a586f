"""Web pages: the DOM tree, texts of its elements, and their rendered boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from polymodal.modalities.text import Tokenizer, Tokens, joined_pieces


class Node(NamedTuple):
    """DOM element. parent: index in the list, -1 for the root. box: left, top, right, bottom in pixels.

    xpath: such as /html/body/div[2]/p. text: direct text content.
    """

    tag: str
    parent: int
    text: str
    xpath: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Webpage:
    """Column of web pages: their elements, parents before children."""

    @property
    def arrow_type(self) -> pa.DataType:
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

    def plot(self, value: list[Node], axes: Any) -> None:
        """Plot the boxes of elements with text, colored by depth."""
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
    """Parse an XPath: '/html/body/div[2]' -> [('html', 1), ('body', 1), ('div', 2)]."""
    steps = []
    for step in xpath.strip("/").split("/"):
        tag, _, subscript = step.partition("[")
        steps.append((tag, int(subscript.rstrip("]")) if subscript else 1))
    return steps


# Tags with an id of their own, from 1; all others share the next id.
TAGS = (
    *("html", "body", "div", "span", "p", "a", "b", "i", "em", "strong", "code", "pre", "kbd", "h1", "h2"),
    *("h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tfoot", "tr"),
    *("th", "td", "caption", "col", "colgroup", "img", "figure", "figcaption", "header", "footer", "main"),
    *("nav", "section", "article", "aside", "form", "input", "button", "select", "option", "label", "textarea"),
    *("fieldset", "legend", "iframe", "video", "audio", "source", "canvas", "svg", "path", "br", "hr"),
    *("blockquote", "cite", "sub", "sup", "small", "abbr", "time", "address", "details", "summary", "tt", "u"),
    *("center", "font", "q", "samp", "var", "del", "ins", "acronym"),
)
TAG_NUMBERS = {tag: number for number, tag in enumerate(TAGS, start=1)}
TAG_COUNT = len(TAGS) + 2  # including none and other
PLACE_COUNT = 256  # subscripts of siblings; 0 for none, the last one for all later siblings


@dataclass(frozen=True)
class ElementTokens:
    """Batch of web pages: tokens of texts with the XPaths of their elements.

    path: tag id and subscript of every step from the root, zeros below the element and for special tokens and padding.
    element: index of the element of a token, -1 for special tokens and padding.
    """

    tokens: Tokens
    path: Int[Tensor, "batch length depth 2"]
    element: Int[Tensor, "batch length"]

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> ElementTokens:
        return ElementTokens(self.tokens.to(device), self.path.to(device), self.element.to(device))


def element_tokens(pages: list[list[Node]], tokenizer: Tokenizer, depth: int) -> ElementTokens:
    """Tokenize the texts of elements in order. depth: maximum number of XPath steps; deeper ones are cut."""
    tokens, element = joined_pieces([[node.text for node in page] for page in pages], tokenizer)
    path = torch.zeros((*element.shape, depth, 2), dtype=torch.long)
    for row, page in enumerate(pages):
        steps = torch.zeros((max(len(page), 1), depth, 2), dtype=torch.long)
        for index, node in enumerate(page):
            for step, (tag, place) in enumerate(xpath_steps(node.xpath)[:depth]):
                steps[index, step, 0] = TAG_NUMBERS.get(tag, TAG_COUNT - 1)
                steps[index, step, 1] = min(place, PLACE_COUNT - 1)
        real = element[row] >= 0
        path[row, real] = steps[element[row, real]]
    return ElementTokens(tokens, path, element)
