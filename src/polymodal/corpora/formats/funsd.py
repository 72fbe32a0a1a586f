"""FUNSD (Jaume et al. 2019): a JSON file for each form, with `form`, the list of its entities, beside its image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._json_head import SUFFIXES, first_record, json_heads
from polymodal.corpora.formats._page_words import FilePage, PageWord, page_rows
from polymodal.corpora.formats.json import load
from polymodal.corpora.rows import Rows
from polymodal.modalities.document import NO_LINK, OTHER

description = "FUNSD: a JSON file with `form` for each page, beside its image"


def matches(data: DataFiles) -> Match:
    """Match by the entities at the beginning of JSON files."""
    return Match.CONTENT if any(_is_form(head) for _, head in json_heads(data)) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the words of all forms. Raises UserError where none has words and an image."""
    return page_rows(data, "funsd", data.with_suffixes(SUFFIXES), _page)


def _is_form(head: Any) -> bool:
    return {"words", "box"} <= {*first_record(head, "form")}


def _page(file: Path) -> list[FilePage]:
    """Return the page of a file. Raises ValueError for a file of another form."""
    held = load(file)
    if not isinstance(held, dict) or not isinstance(held.get("form"), list):
        raise ValueError("it has no list `form`")
    keys = _keys(held["form"])
    words: list[PageWord] = []
    for entity in held["form"]:
        number, label = int(entity.get("id", len(words))), str(entity.get("label") or OTHER)
        for word in entity["words"]:
            if word["text"].strip():
                link = keys.get(number, NO_LINK)
                words.append(PageWord(word["text"].strip(), word["box"], label, number, link))
    return [FilePage(words)]


def _keys(entities: list[dict[str, Any]]) -> dict[int, int]:
    """Return the key of each value: links go from a question to its answer, and from a header to its questions."""
    keys: dict[int, int] = {}
    for entity in entities:
        for start, end in entity.get("linking") or ():
            keys.setdefault(end, start)
    return keys
