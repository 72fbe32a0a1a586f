"""Compositional foils: captions with the words of a true one in another order, so that another thing is said.

Order foils shuffle words (ARO, Yuksekgonul et al. 2023, section 3; stop words take the place of its part-of-speech
tags); attribute foils exchange the attributes of two objects, and relation foils the two sides of a relation (ARO's
VG-Attribution and VG-Relation). Attributes and relations are those of lists of English words, or of the names of an
image's objects where these are annotated, such as "small cat". Captions without what a kind needs have no foil of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from polymodal.modalities.text_augmentation import STOP_WORDS

KINDS = ("order", "attribute", "relation")
MIN_WORDS = 4  # of a caption that is shuffled
TRIES = 20  # shuffles, until one differs
COLORS = "red orange yellow green cyan blue purple pink brown black white grey gray golden silver"
SIZES = "small large big tiny huge little tall short long wide narrow"
STATES = "old young new wooden metal round square open closed wet dry striped empty full"
ATTRIBUTES = frozenset(f"{COLORS} {SIZES} {STATES}".split())
# Asymmetric: "a next to b" says the same as "b next to a".
RELATIONS = (
    *("to the left of", "to the right of", "left of", "right of", "in front of", "on top of", "behind", "above"),
    *("below", "under", "over", "inside", "underneath", "on", "in", "holding", "carrying", "wearing", "riding"),
)
_RELATION = re.compile(rf"\s+(?:is |are )?({'|'.join(RELATIONS)})\s+", re.IGNORECASE)
_CLAUSE = re.compile(r"(\s*[,;.]\s*(?:(?:and|while|with)\s+)?|\s+(?:and|while)\s+)")


def compositional_foils(
    caption: str, names: Sequence[str] = (), rng: np.random.Generator | None = None
) -> dict[str, list[str]]:
    """Return the foils of a caption by kind: four (fewer where shuffles are equal), one and one; only kinds it has.

    names: of the objects that are annotated, with their attributes before the noun. rng: for shuffles; seed 0 without.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    foils = {
        "order": order_foils(caption, rng),
        "attribute": [text for text in [attribute_foil(caption, names)] if text],
        "relation": [text for text in [relation_foil(caption)] if text],
    }
    return {kind: texts for kind, texts in foils.items() if texts}


def order_foils(caption: str, rng: np.random.Generator) -> list[str]:
    """Shuffle content words, all others, words within trigrams, and trigrams; different results that differ."""
    words = caption.split()
    if len(words) < MIN_WORDS:
        return []
    content = [place for place, word in enumerate(words) if _bare(word) not in STOP_WORDS]
    others = [place for place in range(len(words)) if place not in content]
    trigrams = [list(range(start, min(start + 3, len(words)))) for start in range(0, len(words), 3)]

    def shuffled(places: Sequence[int]) -> list[int]:
        order = list(range(len(words)))
        for place, source in zip(places, rng.permutation(places).tolist(), strict=True):
            order[place] = source
        return order

    def within() -> list[int]:
        return [place for trigram in trigrams for place in rng.permutation(trigram).tolist()]

    def between() -> list[int]:
        return [place for number in rng.permutation(len(trigrams)) for place in trigrams[number]]

    makers: tuple[Callable[[], list[int]], ...] = (
        lambda: shuffled(content),
        lambda: shuffled(others),
        within,
        between,
    )
    foils: list[str] = []
    for make in makers:
        tried = (" ".join(words[place] for place in make()) for _ in range(TRIES))
        if text := next((text for text in tried if text not in (caption, " ".join(words), *foils)), None):
            foils.append(text)
    return foils


def attribute_foil(caption: str, names: Sequence[str] = ()) -> str | None:
    """Exchange the attributes of two objects; None where no two objects have different ones.

    names: of objects, such as "small cat"; without two of them in the caption, attributes are those of a word list.
    """
    described = [(attributes, noun) for name in names for attributes, _, noun in [name.rpartition(" ")] if attributes]
    spans = [
        (match.span(1), noun)
        for attributes, noun in dict.fromkeys(described)
        for match in re.finditer(rf"\b({re.escape(attributes)})\s+{re.escape(noun)}\b", caption, re.IGNORECASE)
    ]
    if len(spans) < 2:
        pattern = rf"\b({'|'.join(sorted(ATTRIBUTES))})\s+([\w-]+)"
        spans = [(match.span(1), _head(caption, match.end(1))) for match in re.finditer(pattern, caption, re.I)]
    spans.sort()
    for place, (first, noun) in enumerate(spans):
        for second, other in spans[place + 1 :]:
            one, two = (caption[slice(*span)] for span in (first, second))
            if one.lower() != two.lower() and noun.lower() != other.lower():
                return caption[: first[0]] + two + caption[first[1] : second[0]] + one + caption[second[1] :]
    return None


def relation_foil(caption: str) -> str | None:
    """Exchange the two sides of the first asymmetric relation, within its clause; None where there is none."""
    parts = _CLAUSE.split(caption)
    for place in range(0, len(parts), 2):
        match = _RELATION.search(parts[place])
        if match is None:
            continue
        first, second = parts[place][: match.start()].strip(), parts[place][match.end() :].strip()
        if first and second and first.lower() != second.lower():
            if first[0].isupper() and second[0].islower():
                first, second = first[0].lower() + first[1:], second[0].upper() + second[1:]
            parts[place] = f"{second}{match[0]}{first}"
            return "".join(parts)
    return None


def minimal_pairs(captions: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of rows whose captions differ and have the same letters, as those of Winoground have.

    Letters, so that a compound may be written apart ("fire truck"); spaces, capitals and punctuation do not count. A
    row is in one pair at most: with the next row that fits.
    """
    waiting: dict[str, list[int]] = {}
    pairs = []
    for row, caption in enumerate(captions):
        if len(caption.split()) < 2:
            continue
        of_letters = waiting.setdefault("".join(sorted(re.sub(r"[\W_]", "", caption.lower()))), [])
        text = caption.lower().split()
        partner = next((other for other in of_letters if captions[other].lower().split() != text), None)
        if partner is None:
            of_letters.append(row)
        else:
            of_letters.remove(partner)
            pairs.append((partner, row))
    return sorted(pairs)


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word.lower())


def _head(caption: str, start: int) -> str:
    """The first word from a position on that is no attribute: what the attribute is of."""
    return next((word for word in re.findall(r"[\w-]+", caption[start:]) if word.lower() not in ATTRIBUTES), "")
