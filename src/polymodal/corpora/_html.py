"""HTML parsing for corpora."""

from __future__ import annotations

from typing import Any

from polymodal.errors import needs


def parse_html(html: str) -> Any:
    """Parse a page to a tree. Raises UserError without the package selectolax."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise needs("selectolax", "corpora", "Reading web pages") from error
    return LexborHTMLParser(html)


def words(text: str) -> str:
    """Collapse white space to single spaces, as a browser does."""
    return " ".join(text.split())


def lines(text: str) -> list[str]:
    """Return the nonempty lines, with white space collapsed."""
    return [line for line in map(words, text.split("\n")) if line]
