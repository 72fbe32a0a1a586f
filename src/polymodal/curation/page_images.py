"""Web pages to images in their context: sections with their hierarchy, captions, alternative texts, the main image.

Captions are those of `figcaption`, of MediaWiki's thumbnails, galleries and info boxes, and of DocBook's figures. A
caption belongs to the first image of its element. Navigation is left out, as in `curation.web`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urljoin

from polymodal.corpora._html import parse_html, words
from polymodal.curation.web import HEADINGS, MAX_DEPTH, is_furniture, source_of

SKIPPED_TAGS = {"script", "style", "noscript", "template", "nav", "footer", "aside", "head"}
SKIPPED_CLASSES = {
    *("navheader", "navfooter", "toc", "docnav", "revhistory", "navbox", "mw-editsection", "mw-jump-link", "reference"),
    *("reflist", "catlinks", "metadata", "printfooter", "vertical-navbox"),
}
CONTAINERS = {
    "figure",
    "thumb",
    "thumbinner",
    "gallerybox",
    "tsingle",
    "infobox-image",
    "informalfigure",
    "mediaobject",
}
CAPTION_CLASSES = {"thumbcaption", "gallerytext", "infobox-caption", "caption"}
INFOBOX = {"infobox", "infobox_v2", "infobox_v3", "taxobox"}
INLINE = {
    *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "dfn", "em", "font", "i", "ins", "kbd", "mark", "q", "s"),
    *("samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"),
}


class PageImage(NamedTuple):
    """Image at a place of a page. address: as resolved against the page. titles: of the sections around it, the outer
    one first, without the page's. section: its number. shown: width and height on the page, 0 for none. link: address
    of what it links to."""

    address: str
    titles: tuple[str, ...]
    section: int
    reference: str
    alt: str
    shown: tuple[int, int]
    link: str
    in_infobox: bool


@dataclass
class ParsedPage:
    """title: of the first heading, else of the window. language: as the page states it. description: its first
    paragraph. sections: the texts of its sections, without captions; the first one stands before any heading."""

    title: str
    language: str
    description: str = ""
    images: list[PageImage] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)

    @property
    def main_image(self) -> int | None:
        """The place of the main image: the first one in an info box, else the first one before any section."""
        boxed = [place for place, image in enumerate(self.images) if image.in_infobox]
        leading = [place for place, image in enumerate(self.images) if not image.titles]
        return next(iter(boxed or leading), None)


def parse_page(html: str, base: str = "") -> ParsedPage:
    """Parse a page. base: URL for relative addresses. Raises UserError without the package selectolax."""
    tree = parse_html(html)
    heading, window = tree.css_first("h1"), tree.css_first("title")
    titles = [words(node.text(deep=True, separator=" ")) for node in (heading, window) if node is not None]
    root = tree.css_first("html")
    language = (root.attributes.get("lang") or root.attributes.get("xml:lang") or "") if root is not None else ""
    page = ParsedPage(next(filter(None, titles), ""), language.strip())
    walk = _Walk(page, base)
    if tree.body is not None:
        walk.through(tree.body)
    walk.end_section()
    page.description = page.description or next(filter(None, page.sections), "")
    return page


@dataclass
class _Walk:
    """Traverses a page; pieces are the texts of the present section."""

    page: ParsedPage
    base: str
    headings: list[tuple[int, str]] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    captions: set[int] = field(default_factory=set)  # elements whose text is a caption
    depth: int = 0

    def through(self, node: Any, infobox: bool = False, link: str = "") -> None:
        if self.depth >= MAX_DEPTH:
            return
        self.depth += 1
        for child in node.iter(include_text=True):
            self._child(child, infobox, link)
        self.depth -= 1

    def end_section(self) -> None:
        self.page.sections.append(words("".join(self.pieces)))
        self.pieces = []

    def _child(self, node: Any, infobox: bool, link: str) -> None:
        if node.tag == "-text":
            if not infobox:
                self.pieces.append(node.text_content or "")
        elif _is_skipped(node) or node.mem_id in self.captions:
            return
        elif node.tag in HEADINGS:
            self._heading(node)
        elif node.tag == "img":
            self._image(node, infobox, link)
        else:
            self._element(node, infobox or bool(_classes(node) & INFOBOX), link)

    def _element(self, node: Any, infobox: bool, link: str) -> None:
        start = len(self.pieces)
        if node.tag == "a":
            link = node.attributes.get("href") or link
        if node.tag in ("figcaption", "caption") or _classes(node) & CAPTION_CLASSES:
            if any(source_of(image) for image in node.css("img")):  # an image within the caption of another
                self.through(node, True, link)
            return
        self.captions |= _captions_of(node)
        self.through(node, infobox, link)
        if node.tag not in INLINE:
            self.pieces.append(" ")
        if node.tag == "p" and not infobox and not self.page.description:
            self.page.description = words("".join(self.pieces[start:]))

    def _heading(self, node: Any) -> None:
        text = words(_text_of(node))
        level = HEADINGS[node.tag]
        if level == 1 or not text:
            return
        self.end_section()
        self.headings = [outer for outer in self.headings if outer[0] < level] + [(level, text)]

    def _image(self, node: Any, infobox: bool, link: str) -> None:
        if not (address := source_of(node)):
            return
        try:
            address, link = (urljoin(self.base, one) if self.base and one else one for one in (address, link))
        except ValueError:  # no address, such as http://[
            return
        shown = _pixels(node.attributes.get("width")), _pixels(node.attributes.get("height"))
        titles = tuple(title for _, title in self.headings)
        alt = words(node.attributes.get("alt") or "")
        reference = _reference(node)
        image = PageImage(address, titles, len(self.page.sections), reference, alt, shown, link, infobox)
        self.page.images.append(image)


def _classes(node: Any) -> set[str]:
    return set((node.attributes.get("class") or "").split())


def _is_skipped(node: Any) -> bool:
    return node.tag in SKIPPED_TAGS or bool(_classes(node) & SKIPPED_CLASSES) or is_furniture(node)


def _is_container(node: Any) -> bool:
    return node.tag == "figure" or bool(_classes(node) & CONTAINERS)


def _caption_nodes(container: Any) -> list[Any]:
    """Return the elements of a container that are its caption: `figcaption`, classes of captions, DocBook's title."""
    classed = [node for node in container.css("figcaption, [class]") if node.mem_id != container.mem_id]
    captions = [node for node in classed if node.tag == "figcaption" or _classes(node) & CAPTION_CLASSES]
    if "figure" in _classes(container):
        captions += [node for node in classed if node.tag in ("p", "div") and "title" in _classes(node)]
    return captions


def _captions_of(node: Any) -> set[int]:
    if not _is_container(node) or not any(source_of(image) for image in node.css("img")):
        return set()
    return {caption.mem_id for caption in _caption_nodes(node)}


def _reference(image: Any) -> str:
    """Return the caption of the nearest container that has one, if this is its first image."""
    node = image.parent
    while node is not None and node.tag not in ("body", "html"):
        if _is_container(node) and (captions := _caption_nodes(node)):
            first = next((one for one in node.css("img") if source_of(one)), None)
            is_first = first is not None and first.mem_id == image.mem_id
            return next(filter(None, (words(_text_of(caption)) for caption in captions)), "") if is_first else ""
        node = node.parent
    return ""


def _text_of(node: Any) -> str:
    """Return the text of an element without what is skipped."""
    if node.tag == "-text":
        return str(node.text_content or "")
    parts = [
        _text_of(child) for child in node.iter(include_text=True) if child.tag == "-text" or not _is_skipped(child)
    ]
    return "".join(parts) if node.tag in INLINE else f" {''.join(parts)} "


def _pixels(value: str | None) -> int:
    match = re.match(r"\s*(\d{1,6})", value or "")
    return int(match[1]) if match else 0
