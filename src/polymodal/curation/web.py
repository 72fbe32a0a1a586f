"""Web pages to blocks of text and images in reading order, each with its Markdown.

The page is simplified as OBELICS does (Laurençon et al. 2023, appendix A.1): navigation, footers, dates and what is no
content go, tags that only style a text are opened. Other than there, lists, tables and code keep their form, so that
they can be written as Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urljoin

from polymodal.corpora._html import lines, parse_html, words

HEADINGS = {f"h{level}": level for level in range(1, 7)}
CONTENT = {
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "div", "dl", "dt", "figcaption"),
    *("figure", "hgroup", "html", "legend", "li", "main", "ol", "p", "pre", "section", "summary", "ul", *HEADINGS),
    *("table", "tbody", "td", "tfoot", "th", "thead", "tr", "img", "picture", "br"),
}
STYLE = {
    *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "dfn", "em", "font", "i", "ins", "kbd", "mark", "q", "s"),
    *("samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var"),
}
STRONG, EMPHASIS = {"b", "strong"}, {"em", "i"}
FOOTER = {"footer", "site-info"}  # classes of elements that go
NAVIGATION = {"footer", "header", "navigation", "nav", "navbar", "menu"}  # id, class or title of a div that goes
MORE = "more-link"  # class of what stands between two articles of a page
SOURCES = ("src", "data-src", "data-original", "data-lazy-src", "srcset", "data-srcset")


class Block(NamedTuple):
    """A piece of a page: a text, or an image.

    kind: heading, paragraph, item, row, code or figure. text: without marks; a figure's caption. markdown: with them.
    image: address of a figure, "" for a text.
    """

    kind: str
    text: str
    markdown: str
    image: str = ""


def blocks_of(html: str, base: str = "") -> list[Block]:
    """The content of a page in reading order. base: what addresses of images are relative to.

    Raises UserError without the package selectolax.
    """
    tree = parse_html(html)
    if tree.body is None:
        return []
    walk = _Walk(base)
    walk.through(tree.body, _Place())
    walk.end()
    return walk.blocks


def markdown_of(blocks: list[Block]) -> str:
    """The page as Markdown; items of a list and rows of a table stand close together."""
    parts: list[str] = []
    for number, block in enumerate(blocks):
        if number:
            close = block.kind == blocks[number - 1].kind and block.kind in ("item", "row")
            parts.append("\n" if close else "\n\n")
        parts.append(block.markdown)
    return "".join(parts)


def visible(markdown: str, text: str) -> list[bool]:
    """For every character of a block's Markdown, whether it is one of the block's text, and no mark."""
    shown = [False] * len(markdown)
    place = 0
    for character in text:
        found = markdown.find(character, place)
        if found >= 0:
            shown[found], place = True, found + 1
    return shown


def parallel_lists(blocks: list[Block]) -> dict[str, list[str | None]]:
    """The four lists of OBELICS: at each place either a text or an image, its caption, and what kind it is."""
    return {
        "texts": [None if block.image else block.text for block in blocks],
        "images": [block.image or None for block in blocks],
        "images_captions": [block.text if block.image else None for block in blocks],
        "metadata": [block.kind for block in blocks],
    }


@dataclass(frozen=True)
class _Place:
    """Where in the page a text stands. prefix: what its first line begins with; later ones are indented alike."""

    kind: str = "paragraph"
    prefix: str = ""
    depth: int = 0  # of lists


@dataclass
class _Walk:
    """Goes through a page and gathers texts until a block ends."""

    base: str
    blocks: list[Block] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    place: _Place = field(default_factory=_Place)

    def through(self, node: Any, place: _Place) -> None:
        for child in node.iter(include_text=True):
            self._child(child, place)

    def _child(self, node: Any, place: _Place) -> None:
        tag = node.tag
        if tag == "-text":
            self._say(re.sub(r"\s+", " ", node.text_content or ""), place)
        elif tag == "br":
            self._say("\n", place)
        elif tag in STYLE:
            self._styled(node, place)
        elif tag in CONTENT and not _is_furniture(node):
            self._block(node, tag, place)

    def _say(self, text: str, place: _Place) -> None:
        if not self.plain:
            self.place = place
        self.plain.append(text)
        self.marked.append(text)

    def _styled(self, node: Any, place: _Place) -> None:
        if MORE in _classes(node):
            self.end()
            return
        mark = "**" if node.tag in STRONG else "*" if node.tag in EMPHASIS else ""
        first = len(self.marked)
        self.through(node, place)
        said = "".join(self.marked[first:])
        if mark and said.strip() and "\n" not in said.strip():
            lead, trail = said[: len(said) - len(said.lstrip())], said[len(said.rstrip()) :]
            self.marked[first:] = [f"{lead}{mark}{said.strip()}{mark}{trail}"]

    def _block(self, node: Any, tag: str, place: _Place) -> None:
        if tag == "picture":
            self.through(node, place)
        elif tag == "img":
            self._figure(node)
        elif tag == "pre":
            self._code(node)
        elif tag == "tr":
            self._row(node)
        else:
            self.end()
            if tag in ("ul", "ol"):
                self._list(node, tag, place)
            elif tag in HEADINGS:
                self.through(node, _Place("heading", "#" * HEADINGS[tag] + " "))
            elif tag == "blockquote":
                self.through(node, _Place("paragraph", "> "))
            else:
                self.through(node, place)
            self.end()

    def _list(self, node: Any, tag: str, place: _Place) -> None:
        number = 0
        for child in node.iter(include_text=True):
            if child.tag != "li":
                self._child(child, place)
                continue
            self.end()
            number += 1
            inside = _Place("item", "  " * place.depth + ("- " if tag == "ul" else f"{number}. "), place.depth + 1)
            before = len(self.blocks)
            self.through(child, inside)
            self.end()
            if len(self.blocks) > before + 1:  # only its first text has the mark
                self.blocks[before + 1 :] = [_indented(block, inside) for block in self.blocks[before + 1 :]]

    def _row(self, node: Any) -> None:
        self.end()
        cells = [child for child in node.iter(include_text=False) if child.tag in ("td", "th")]
        texts = [words(cell.text(deep=True, separator=" ")) for cell in cells]
        if any(texts):
            line = "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
            head = all(cell.tag == "th" for cell in cells)
            under = f"\n|{'---|' * len(cells)}" if head else ""
            self.blocks.append(Block("row", " ".join(text for text in texts if text), line + under))
        for image in node.css("img"):
            self._figure(image)

    def _code(self, node: Any) -> None:
        self.end()
        text = (node.text(deep=True) or "").strip("\n")
        if text.strip():
            self.blocks.append(Block("code", text, f"```\n{text}\n```"))

    def _figure(self, node: Any) -> None:
        address = source_of(node)
        if not address:
            return
        self.end()
        caption = words(node.attributes.get("alt") or node.attributes.get("title") or "")
        whole = urljoin(self.base, address) if self.base else address
        self.blocks.append(Block("figure", caption, f"![{caption}]({whole})", whole))

    def end(self) -> None:
        """The texts so far are a block."""
        plain, marked = ("\n".join(lines("".join(said))) for said in (self.plain, self.marked))
        self.plain, self.marked = [], []
        if plain:
            prefix = self.place.prefix
            later = "\n" + (prefix if prefix == "> " else " " * len(prefix) if self.place.kind == "item" else "")
            self.blocks.append(Block(self.place.kind, plain, prefix + marked.replace("\n", later)))


def _indented(block: Block, place: _Place) -> Block:
    """What follows the first text of an item, under it; items of an inner list have an indentation of their own."""
    if block.kind != "item" or not block.markdown.startswith(place.prefix):
        return block
    text = block.markdown.removeprefix(place.prefix)
    return block._replace(kind="paragraph", markdown=" " * len(place.prefix) + text)


def source_of(node: Any) -> str:
    """The address of an image: the first attribute of those that pages use, of which no list and no data is taken."""
    for name in SOURCES:
        value = (node.attributes.get(name) or "").strip()
        if value and "," not in value and " " not in value and not value.startswith("data:"):
            return value
    return ""


def _classes(node: Any) -> set[str]:
    return set((node.attributes.get("class") or "").split())


def _is_furniture(node: Any) -> bool:
    """Whether an element is navigation, a footer, or a date, and no content."""
    classes = _classes(node)
    if classes & FOOTER:
        return True
    if node.tag != "div":
        return False
    named = {node.attributes.get("id") or "", node.attributes.get("title") or "", *classes}
    dated = any("date" in name for name in classes) and not any(_blocks_in(node))
    return bool(named & NAVIGATION) or dated


def _blocks_in(node: Any) -> Iterator[Any]:
    return (child for child in node.iter(include_text=False) if child.tag in CONTENT)
