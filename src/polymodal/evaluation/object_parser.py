"""Object parsers: which objects does a caption name? A noun-phrase grammar over WordNet, and chat models."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from polymodal.corpora._wordnet import WordNet, wordnet
from polymodal.evaluation.coco import COCO_CLASSES
from polymodal.evaluation.language_models import ChatModel

MAX_NOUN_WORDS = 3
_PLACES = """left right top bottom centre center middle side front back foreground background corner edge upper lower"""
_STOP = """
a an the some this that its it his her their of in on at to with and or but is are was be one two three four five six
seven eight nine ten several many few i you he she we they
"""
PLACES, STOP = frozenset(_PLACES.split()), frozenset(_STOP.split())
# Objects whose most frequent sense in WordNet is no physical entity, beside the classes of COCO.
THINGS = frozenset({*COCO_CLASSES, "table", "sign", "crowd", "team"})
NEGATIONS = frozenset({"no", "without", "not"})
# The caption is uncertain of the object that follows. "may be" only before an article: "a wolf that may be asleep".
HEDGE = re.compile(
    r"what appears to be|what looks like|(?:might|may|could) be(?= (?:an?|the|some|another)\b)|possibly|perhaps|maybe"
)
# No plurals: nouns that end in these stand for themselves, "genus" is of no "genu".
NO_PLURAL = ("ss", "us", "ics")
SAME_IN_PLURAL = frozenset({"sheep", "fish", "deer"})
PROCESS = "process"  # physical in WordNet, but no object: "eating", "sunlight"
MARK = "\0"
CERTAIN, UNCERTAIN = "", " (possibly)"


@runtime_checkable
class ObjectParser(Protocol):
    """What lists the objects of captions as lines of "- object", in the singular, with attributes.

    "(possibly)" behind an object says that the caption is uncertain of it, "or" separates alternatives.
    """

    def parse_caption(self, caption: str) -> str:
        """Return the objects of one caption."""
        ...

    def parse_references(self, captions: Sequence[str]) -> str:
        """Return the objects of all captions of an image together."""
        ...


class NounPhraseParser:
    """Noun phrases whose nouns are physical entities in WordNet."""

    def __init__(self, wanted_by: str):
        """wanted_by: for messages. Raises UserError without npm or network."""
        self.lexicon = wordnet(wanted_by)

    def parse_caption(self, caption: str) -> str:
        return object_lines(caption, self.lexicon)

    def parse_references(self, captions: Sequence[str]) -> str:
        return "\n".join(map(self.parse_caption, captions))


INSTRUCTION = """List every object that can be seen in the picture that {what}, one per line, as "- object".
Keep the adjectives of an object. Write each object once, in the singular. Leave out what cannot be seen, such as light,
sound or feelings. Write "(possibly)" behind an object that the text is not sure of. Where the text leaves open which of
several things an object is, write them on one line with "or" between them. Write nothing else."""
EXAMPLES = (
    (("Three young girls feed ducks at a quiet pond.",), "- young girl\n- duck\n- pond"),
    (("A dog or a wolf sleeps beside what may be a tent.",), "- dog or wolf\n- tent (possibly)"),
    (
        ("A red bus in the evening light.", "Two people wait for a bus in happy mood."),
        "- red bus\n- person",
    ),
)


class ChatModelParser:
    """A chat model of transformers with three examples in the prompt, decoded greedily (ALOHa, section 3.1)."""

    def __init__(self, name: str, max_new_tokens: int = 256):
        """name: of a causal language model with a chat template, on the hub or a folder.

        Raises UserError when it cannot be read, or has no chat template.
        """
        self.chat = ChatModel(name, f"--object-parser {name}", max_new_tokens)

    def parse_caption(self, caption: str) -> str:
        return self._answer("this caption describes", [caption])

    def parse_references(self, captions: Sequence[str]) -> str:
        return self._answer("these captions describe", captions)

    def messages(self, what: str, captions: Sequence[str]) -> list[dict[str, str]]:
        """Return the conversation, which ends with the captions."""
        conversation = [{"role": "system", "content": INSTRUCTION.format(what=what)}]
        for texts, answer in EXAMPLES:
            conversation += [{"role": "user", "content": "\n".join(texts)}, {"role": "assistant", "content": answer}]
        return [*conversation, {"role": "user", "content": "\n".join(captions)}]

    def _answer(self, what: str, captions: Sequence[str]) -> str:
        return self.chat.answer(self.messages(what, captions))


@functools.lru_cache(maxsize=2)
def object_parser(name: str, wanted_by: str) -> ObjectParser:
    """Return the parser of a name: noun_phrases, or that of a chat model."""
    return NounPhraseParser(wanted_by) if name == "noun_phrases" else ChatModelParser(name)


def object_lines(caption: str, lexicon: WordNet) -> str:
    """Return one "- object" per line, in the singular, with its attributes; "(possibly)" behind uncertain ones.

    Alternatives stand on one line, "a dog or a cat" as "- dog or cat". Repeated objects are named once. Only physical
    entities count, and no words for places in the image, nor what is negated.
    """
    objects: dict[str, None] = {}
    for clause in re.split(r"[,.;:!?]| and ", f" {HEDGE.sub(MARK, caption.lower())} "):
        alternatives = [phrases for part in clause.split(" or ") if (phrases := _phrases(part, lexicon))]
        if len(alternatives) > 1:
            between = [alternatives[n][-1 if n == 0 else 0] for n in range(len(alternatives))]
            others = [*alternatives[0][:-1], *(phrase for part in alternatives[1:] for phrase in part[1:])]
            doubt = UNCERTAIN if any(phrase.endswith(UNCERTAIN) for phrase in between) else CERTAIN
            joined = " or ".join(phrase.removesuffix(UNCERTAIN) for phrase in between)
            objects |= dict.fromkeys([f"{joined}{doubt}", *others])
        else:
            objects |= dict.fromkeys(phrase for part in alternatives for phrase in part)
    return "\n".join(f"- {phrase}" for phrase in objects)


def _phrases(text: str, lexicon: WordNet) -> list[str]:
    """Return the noun phrases of a clause: attributes and a noun, with "(possibly)" behind the first after a hedge.

    Adjacent nouns are one compound, "pizza box", unless all but the last are in the plural.
    """
    words = re.findall(rf"{MARK}|[^\W_][\w'-]*", text)
    phrases: list[str] = []
    attributes: list[str] = []
    uncertain = negated = False
    place = 0
    while place < len(words):
        noun, length = _noun(words, place, lexicon)
        while noun is not None and _is_singular(words, place, length, noun):
            head, head_length = _noun(words, place + length, lexicon, compound=noun not in SAME_IN_PLURAL)
            if head is None:
                break
            noun, length = f"{noun} {head}", length + head_length
        if noun is not None:
            if not negated:
                phrases.append(" ".join([*attributes, noun]) + (UNCERTAIN if uncertain else CERTAIN))
            attributes, uncertain, negated = [], False, False
        elif words[place] in lexicon.adjectives and words[place] not in STOP | PLACES | NEGATIONS:
            attributes.append(words[place])
        else:
            attributes = []
            uncertain |= words[place] == MARK
            negated |= words[place] in NEGATIONS
        place += max(length, 1)
    return phrases


def _is_singular(words: list[str], place: int, length: int, noun: str) -> bool:
    """Return whether the noun ends with the word as written there: a modifier is singular, a subject may not be."""
    return noun.split()[-1] == words[place + length - 1].split("-")[-1]


def _noun(words: list[str], place: int, lexicon: WordNet, compound: bool = False) -> tuple[str | None, int]:
    """Return the longest noun for a physical entity that begins here, in the singular, and how many words it has.

    A word that may be something else is a noun where its place says so: after an article or an attribute and before no
    other noun, as "seal" in "a large seal"; not "orange" in "an orange cat". compound: behind another noun, where a
    word that may be a verb is a noun if it is in the singular, as "sink" in "a bathroom sink".
    """
    for length in range(min(MAX_NOUN_WORDS, len(words) - place), 0, -1):
        part = words[place : place + length]
        noun = thing(" ".join(part), lexicon)
        if noun is None:
            continue
        if length == 1:
            if part[0] in STOP | PLACES:
                continue
            before, after = words[:place][-1:], words[place + 1 :][:1]
            if after and part[0] in lexicon.adjectives and _noun(words, place + 1, lexicon)[0]:
                continue
            introduced = bool(before) and (before[0] in STOP | NEGATIONS or before[0] in lexicon.adjectives)
            introduced |= compound and noun == part[0]
            # "a man stands": a verb behind its subject.
            behind_noun = bool(before) and lexicon.is_mostly_noun(before[0]) and thing(before[0], lexicon) is not None
            if noun != part[0] and behind_noun and not lexicon.is_mostly_noun(noun):
                continue
            ends = not after or after[0] in STOP | PLACES
            if not lexicon.is_mostly_noun(part[0]) and not (introduced and (ends or noun in THINGS)):
                continue
        return noun, length
    return None, 1


def thing(words: str, lexicon: WordNet) -> str | None:
    """Return the noun in the singular if it is a physical object in its most frequent sense, or one of `THINGS`."""
    words = words.replace("-", " ") if lexicon.noun(words) is None else words  # "hot-dog" is written "hot dog" there
    if words in THINGS:
        return words
    # Plurals that are a noun of their own, as "bowls", a game; classes of COCO that WordNet lacks, as "wine glasses".
    ends = [] if words.endswith(NO_PLURAL) else ["s"] + ["es"] * (" " in words)
    forms = [words, *(one for end in ends if (one := words.removesuffix(end)) != words)]
    entries = {form: entry.replace("_", " ") if (entry := lexicon.noun(form)) else None for form in forms}
    for form, entry in entries.items():
        if form in THINGS or entry in THINGS:
            return form if form in THINGS else entry
    return next((entry for entry in entries.values() if entry and _is_object(entry, lexicon)), None)


def _is_object(entry: str, lexicon: WordNet) -> bool:
    noun = entry.replace(" ", "_")
    return lexicon.is_thing(noun) and PROCESS not in lexicon.kinds(noun)


def root(phrase: str, lexicon: WordNet) -> str:
    """Return the noun at the end of a phrase: "red car" -> "car"."""
    words = phrase.split()
    for length in range(min(MAX_NOUN_WORDS, len(words)), 0, -1):
        if lexicon.noun(last := " ".join(words[-length:])) is not None or last in THINGS:
            return " ".join(words[-length:])
    return words[-1] if words else phrase
