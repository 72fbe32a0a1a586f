"""Lines of a receipt of CORD, by their JSON."""

from __future__ import annotations

from typing import Any

from polymodal.corpora.formats._page_words import PageWord
from polymodal.modalities.document import OTHER


def receipt_words(held: Any) -> tuple[list[PageWord], tuple[float, float] | None]:
    """Return the words of a receipt and its size, if it is given; each line of words is a segment.

    Raises ValueError for JSON of another form.
    """
    if not isinstance(held, dict) or not isinstance(held.get("valid_line"), list):
        raise ValueError("it has no list `valid_line`")
    words = []
    for segment, line in enumerate(held["valid_line"]):
        for word in line["words"]:
            if word["text"].strip():
                quad = word["quad"]
                across = [quad[f"x{corner}"] for corner in range(1, 5)]
                down = [quad[f"y{corner}"] for corner in range(1, 5)]
                box = (min(across), min(down), max(across), max(down))
                words.append(PageWord(word["text"].strip(), box, str(line.get("category") or OTHER), segment))
    size = (held.get("meta") or {}).get("image_size")
    return words, (size["width"], size["height"]) if size else None
