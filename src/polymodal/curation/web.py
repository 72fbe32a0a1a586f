"""Web pages to blocks of text and images in reading order, each with its Markdown.

Pages are simplified as in OBELICS (Laurençon et al. 2023, appendix A.1): navigation, footers, dates and non-content
elements are removed, styling tags are unwrapped. Unlike there, lists, tables and code keep their structure, so that
they can be written as Markdown.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from polymodal.corpora._html import lines, parse_html, words

HEADINGS = {f"h{level}": level for level in range(1, 7)}
CONTENT = {
    *("address", "article", "aside", "blink", "blockquote", "body", "caption", "center", "dd", "div", "dl", "dt"),
    *("figcaption", "figure", "hgroup", "html", "legend", "li", "main", "marquee", "ol", "p", "pre", "section"),
    *("summary", "ul", *HEADINGS),
    *("table", "tbody", "td", "tfoot", "th", "thead", "tr", "img", "picture", "br"),
}
STYLE = {
    *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "dfn", "em", "font", "i", "ins", "kbd"),
    *("mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"),
}
STRONG, EMPHASIS = {"b", "strong"}, {"em", "i"}
FOOTER = {"footer", "site-info"}  # classes of removed elements
NAVIGATION = {"footer", "header", "navigation", "nav", "navbar", "menu"}  # whole id, class or title of removed divs
DATE = "date"  # in the class of divs without what they say directly (released code)
MORE = "more-link"  # class of elements after which a page has another document
# Attributes of an image's address, the first ones first (released code); data-srcset is not there.
SOURCES = (
    *("src", "data-src", "data-src-fg", "data-scroll-image", "srcset", "data-lateloadsrc", "data-img-src"),
    *("data-original", "data-gt-lazy-src", "data-lazy", "data-lazy-src", "src2", "data-srcset"),
)
MAX_DEPTH = 150  # of nested elements, below which the text is read as it is: Python's recursion is limited


class PageBlock(NamedTuple):
    """Text or image of a page.

    kind: heading, paragraph, item, row, code or figure. text: plain text; the caption of a figure. markdown: with
    markup. image: address of a figure, "" for a text. metadata: of a figure, as JSON: alternative text, words of the
    file name, width and height as the page gives them. document: number of the page's document that it belongs to; ""
    is the first one.
    """

    kind: str
    text: str
    markdown: str
    image: str = ""
    metadata: str = ""
    document: str = ""


def blocks_of(html: str, base: str = "") -> list[PageBlock]:
    """Return the content of a page in reading order. base: URL for relative image addresses.

    Raises UserError without the package selectolax.
    """
    tree = parse_html(html)
    if tree.body is None:
        return []
    walk = _Walk(base)
    walk.through(tree.body, _Place())
    walk.end()
    return walk.blocks


def markdown_of(blocks: list[PageBlock]) -> str:
    """Join blocks to Markdown; list items and table rows are not separated by blank lines."""
    parts: list[str] = []
    for index, block in enumerate(blocks):
        if index:
            close = block.kind == blocks[index - 1].kind and block.kind in ("item", "row")
            parts.append("\n" if close else "\n\n")
        parts.append(block.markdown)
    return "".join(parts)


def visible(markdown: str, text: str) -> list[bool]:
    """Return for every character of a block's Markdown whether it is text rather than markup."""
    is_text = [False] * len(markdown)
    start = 0
    for character in text:
        index = markdown.find(character, start)
        if index >= 0:
            is_text[index], start = True, index + 1
    return is_text


def parallel_lists(blocks: list[PageBlock]) -> dict[str, list[str | None]]:
    """Return the four parallel lists of OBELICS: a text or an image at each index, its caption, and its metadata.

    metadata: the kind of a text, and what the page says of an image, as JSON.
    """
    return {
        "texts": [None if block.image else block.text for block in blocks],
        "images": [block.image or None for block in blocks],
        "images_captions": [block.text if block.image else None for block in blocks],
        "metadata": [block.metadata or block.kind for block in blocks],
    }


@dataclass(frozen=True)
class _Place:
    """Context of a text in the page. prefix: Markdown prefix of the first line; later lines are indented alike."""

    kind: str = "paragraph"
    prefix: str = ""
    depth: int = 0  # of lists


@dataclass
class _Walk:
    """Traverses a page and collects texts until a block ends."""

    base: str
    blocks: list[PageBlock] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    place: _Place = field(default_factory=_Place)
    document: int = 0
    depth: int = 0  # of elements

    def through(self, node: Any, place: _Place) -> None:
        if self.depth >= MAX_DEPTH:
            self._say(words(node.text(deep=True, separator=" ")), place)
            return
        self.depth += 1
        for child in node.iter(include_text=True):
            self._child(child, place)
        self.depth -= 1

    def _child(self, node: Any, place: _Place) -> None:
        tag = node.tag
        if tag != "-text" and is_furniture(node):
            return
        if tag != "-text" and MORE in _classes(node):
            self.end()
            self.document += bool(self.blocks)
        elif tag == "-text":
            self._say(re.sub(r"\s+", " ", node.text_content or ""), place)
        elif tag == "br":
            self._say("\n", place)
        elif tag in STYLE:
            self._styled(node, place)
        elif tag == "div" and DATE in (node.attributes.get("class") or ""):
            self._without_text(node, place)
        elif tag in CONTENT:
            self._block(node, tag, place)

    def _without_text(self, node: Any, place: _Place) -> None:
        """Traverse the blocks and images inside, but not the text that is directly there, styled or not."""
        for child in node.iter(include_text=False):
            if child.tag in STYLE:
                self._without_text(child, place)
            elif child.tag != "br":
                self._child(child, place)

    def _say(self, text: str, place: _Place) -> None:
        if not self.plain:
            self.place = place
        self.plain.append(text)
        self.marked.append(text)

    def _styled(self, node: Any, place: _Place) -> None:
        mark = "**" if node.tag in STRONG else "*" if node.tag in EMPHASIS else ""
        first = len(self.marked)
        self.through(node, place)
        inner = "".join(self.marked[first:])
        if mark and inner.strip() and "\n" not in inner.strip():
            lead, trail = inner[: len(inner) - len(inner.lstrip())], inner[len(inner.rstrip()) :]
            self.marked[first:] = [f"{lead}{mark}{inner.strip()}{mark}{trail}"]

    def _block(self, node: Any, tag: str, place: _Place) -> None:
        if tag == "picture":
            self.through(node, place)
        elif tag == "img":
            self._figure(node)
        elif tag == "figure" and any(source_of(image) for image in node.css("img")):
            self._captioned(node, place)
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
        index = 0
        for child in node.iter(include_text=True):
            if child.tag != "li" or is_furniture(child):
                self._child(child, place)
                continue
            self.end()
            index += 1
            inside = _Place("item", "  " * place.depth + ("- " if tag == "ul" else f"{index}. "), place.depth + 1)
            before = len(self.blocks)
            self.through(child, inside)
            self.end()
            if len(self.blocks) > before + 1:  # only the first text has the bullet
                self.blocks[before + 1 :] = [_indented(block, inside) for block in self.blocks[before + 1 :]]

    def _row(self, node: Any) -> None:
        self.end()
        cells = [one for one in node.iter(include_text=False) if one.tag in ("td", "th") and not is_furniture(one)]
        content = [self._inside(cell) for cell in cells]
        texts = [words(" ".join(block.text for block in blocks if not block.image)) for blocks in content]
        if any(texts):
            line = "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
            head = all(cell.tag == "th" for cell in cells)
            under = f"\n|{'---|' * len(cells)}" if head else ""
            self._add(PageBlock("row", " ".join(text for text in texts if text), line + under))
        for block in itertools.chain(*content):
            if block.image:
                self._add(block)

    def _inside(self, cell: Any) -> list[PageBlock]:
        """Read the blocks of a table's cell."""
        walk = _Walk(self.base, depth=self.depth)
        walk.through(cell, _Place())
        walk.end()
        return walk.blocks

    def _code(self, node: Any) -> None:
        self.end()
        text = (node.text(deep=True) or "").strip("\n")
        if text.strip():
            self._add(PageBlock("code", text, f"```\n{text}\n```"))

    def _captioned(self, node: Any, place: _Place) -> None:
        """Read a figure; its figcaption is the caption of its first image, before alternative text and title."""
        caption = node.css_first("figcaption")
        figcaption = words(caption.text(deep=True, separator=" ")) if caption is not None else ""
        if caption is not None:
            caption.decompose()
        self.end()
        first = len(self.blocks)
        self.through(node, place)
        self.end()
        for index in range(first, len(self.blocks)):
            if figcaption and self.blocks[index].image:
                url = self.blocks[index].image
                self.blocks[index] = self.blocks[index]._replace(text=figcaption, markdown=f"![{figcaption}]({url})")
                break

    def _figure(self, node: Any) -> None:
        address = source_of(node)
        if not address:
            return
        self.end()
        given = {name: words(node.attributes.get(name) or "") for name in ("alt", "title", "width", "height")}
        caption = given["alt"] or given["title"]
        try:
            url = urljoin(self.base, address) if self.base else address
            path = urlsplit(url).path
        except ValueError:  # no address, such as http://[
            return
        name = re.sub(r"[\W_]+", " ", PurePosixPath(unquote(path)).stem).strip()
        attributes = {"alt": given["alt"], "file_name": name, "width": given["width"], "height": given["height"]}
        metadata = json.dumps({"kind": "figure", **attributes}, ensure_ascii=False)
        self._add(PageBlock("figure", caption, f"![{caption}]({url})", url, metadata))

    def _add(self, block: PageBlock) -> None:
        self.blocks.append(block._replace(document=str(self.document) if self.document else ""))

    def end(self) -> None:
        """Emit the collected texts as a block."""
        plain, marked = ("\n".join(lines("".join(pieces))) for pieces in (self.plain, self.marked))
        self.plain, self.marked = [], []
        if plain:
            prefix = self.place.prefix
            later = "\n" + (prefix if prefix == "> " else " " * len(prefix) if self.place.kind == "item" else "")
            self._add(PageBlock(self.place.kind, plain, prefix + marked.replace("\n", later)))


def _indented(block: PageBlock, place: _Place) -> PageBlock:
    """Indent blocks that follow the first text of a list item; items of nested lists have their own indentation."""
    if block.kind != "item" or not block.markdown.startswith(place.prefix):
        return block
    text = block.markdown.removeprefix(place.prefix)
    return block._replace(kind="paragraph", markdown=" " * len(place.prefix) + text)


def source_of(node: Any) -> str:
    """Return the address of an image: the first usable source attribute, excluding srcset lists and data URLs."""
    for name in SOURCES:
        value = (node.attributes.get(name) or "").strip()
        if value and "," not in value and " " not in value and not value.startswith("data:"):
            return value
    return ""


def _classes(node: Any) -> set[str]:
    return set((node.attributes.get("class") or "").split())


def is_furniture(node: Any) -> bool:
    """Return whether an element has a class of footers, or is a div whose whole id, class or title is of navigation.

    A div of several classes, such as "header main", is content (released code).
    """
    if _classes(node) & FOOTER:
        return True
    return node.tag == "div" and any(node.attributes.get(name) in NAVIGATION for name in ("id", "class", "title"))
