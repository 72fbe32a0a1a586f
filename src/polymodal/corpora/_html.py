"""HTML that a corpus reads."""

from __future__ import annotations

from typing import Any

from polymodal.errors import needs


def parse_html(html: str) -> Any:
    """The tree of a page. Raises UserError without the package selectolax."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise needs("selectolax", "corpora", "Reading web pages") from error
    return LexborHTMLParser(html)


def words(text: str) -> str:
    """With one space for every run of white space, as a browser shows it."""
    return " ".join(text.split())


def lines(text: str) -> list[str]:
    """The lines that are not empty, each with single spaces."""
    return [line for line in map(words, text.split("\n")) if line]
