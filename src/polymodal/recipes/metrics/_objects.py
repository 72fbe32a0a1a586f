"""Which objects does a caption speak of? A noun-phrase grammar over WordNet, in the place of a language model."""

from __future__ import annotations

import re

from polymodal.corpora._wordnet import WordNet

MAX_NOUN_WORDS = 3
_PLACES = """left right top bottom centre center middle side front back foreground background corner edge upper lower"""
_STOP = """
a an the some this that its it his her their of in on at to with and or but is are was be one two three four five six
seven eight nine ten several many few i you he she we they
"""
PLACES, STOP = frozenset(_PLACES.split()), frozenset(_STOP.split())
# What says that the object behind it is not sure; longest first.
HEDGES = ("what appears to be", "what looks like", "might be", "may be", "could be", "possibly", "perhaps", "maybe")
SURE, UNSURE = "", " (possibly)"


def object_lines(caption: str, lexicon: WordNet) -> str:
    """One "- object" a line, in the singular, with its attributes; "(possibly)" behind what the caption doubts.

    Alternatives stand on one line, "a dog or a cat" as "- dog or cat". Repeated objects are named once. Only what has a
    place in the world counts, and no words for places in the image.
    """
    found: dict[str, None] = {}
    for clause in re.split(r"[,.;:!?]| and ", f" {_marked(caption.lower())} "):
        doubt = UNSURE if "\u0000" in clause else SURE
        alternatives = [
            phrases for part in clause.replace("\u0000", " ").split(" or ") if (phrases := _phrases(part, lexicon))
        ]
        if len(alternatives) > 1:
            between = [alternatives[n][-1 if n == 0 else 0] for n in range(len(alternatives))]
            others = [*alternatives[0][:-1], *(phrase for part in alternatives[1:] for phrase in part[1:])]
            found |= dict.fromkeys([f"{' or '.join(between)}{doubt}", *(f"{one}{doubt}" for one in others)])
        else:
            found |= dict.fromkeys(f"{phrase}{doubt}" for part in alternatives for phrase in part)
    return "\n".join(f"- {phrase}" for phrase in found)


def _marked(caption: str) -> str:
    for hedge in HEDGES:
        caption = caption.replace(hedge, "\u0000")
    return caption


def _phrases(text: str, lexicon: WordNet) -> list[str]:
    """Noun phrases of a clause: attributes and a noun."""
    words = re.findall(r"[^\W_][\w'-]*", text)
    found: list[str] = []
    attributes: list[str] = []
    place = 0
    while place < len(words):
        noun, length = _noun(words, place, lexicon)
        if noun is not None:
            found.append(" ".join([*attributes, noun]))
            attributes = []
        elif words[place] in lexicon.adjectives and words[place] not in STOP | PLACES:
            attributes.append(words[place])
        else:
            attributes = []
        place += max(length, 1)
    return found


def _noun(words: list[str], place: int, lexicon: WordNet) -> tuple[str | None, int]:
    """The longest noun for a thing that begins here, in the singular, and how many words it has.

    A word that may be something else is a noun where its place says so: after an article or an attribute and before no
    other noun, as "seal" in "a large seal"; not "orange" in "an orange cat".
    """
    for length in range(min(MAX_NOUN_WORDS, len(words) - place), 0, -1):
        part = words[place : place + length]
        entry = lexicon.noun(" ".join(part))
        if entry is None or not lexicon.is_thing(entry):
            continue
        if length == 1:
            if part[0] in STOP | PLACES:
                continue
            before, after = words[:place][-1:], words[place + 1 :][:1]
            if after and part[0] in lexicon.adjectives and _noun(words, place + 1, lexicon)[0]:
                continue
            introduced = bool(before) and (before[0] in STOP or before[0] in lexicon.adjectives)
            ends = not after or after[0] in STOP | PLACES
            if not lexicon.is_mostly_noun(part[0]) and not (introduced and ends):
                continue
        return entry.replace("_", " "), length
    return None, 1


def root(phrase: str, lexicon: WordNet) -> str:
    """The noun at the end of a phrase: "red car" -> "car"."""
    words = phrase.split()
    for length in range(min(MAX_NOUN_WORDS, len(words)), 0, -1):
        if lexicon.noun(" ".join(words[-length:])) is not None:
            return " ".join(words[-length:])
    return words[-1] if words else phrase
