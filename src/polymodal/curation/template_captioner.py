"""Captions of composed scenes in all formats, by templates, and AltText as on web pages.

What is in a scene is known, and so is which assertions of a caption are true.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.curation.caption_formats import control_prompt

SIZES = ("small", "large")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white", "grey", "black")
AREAS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
CLUTTER = (
    *("stock photo", "free download", "clipart", "wallpaper", "for sale", "buy now", "vector"),
    *("IMG_{number}", "DSC{number}.jpg", "{number} px"),
)


class SceneObject(NamedTuple):
    """An object of a composed scene."""

    name: str
    size: str
    color: str
    place: str


class SceneFacts(NamedTuple):
    """All that can be said of a scene. relations: place of an object, relation, place of another."""

    objects: tuple[SceneObject, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


def scene_facts(corpus: Corpus, row: int) -> SceneFacts:
    """Return the facts of a row of `scenes`."""
    answers: dict[str, list[str]] = {"colour": [], "place": []}
    for question in corpus.raw(row, "questions"):
        answers.get(question["kind"], []).append(question["answer"])
    named = [region["name"].split(" ", 1) for region in corpus.raw(row, "regions")]
    each = zip(named, answers["colour"], answers["place"], strict=True)
    edges = corpus.raw(row, "relations")["edges"]
    return SceneFacts(
        tuple(SceneObject(name, size, color, place) for (size, name), color, place in each),
        tuple((edge["source"], edge["relation"], edge["target"]) for edge in edges),
    )


class WrittenCaption(NamedTuple):
    """A caption, and for each of its assertions whether it is true."""

    text: str
    truths: tuple[bool, ...]


@dataclass(frozen=True)
class TemplateCaptioner:
    """Captions of composed scenes in all formats, the same for a key and seed.

    It sees sizes, colors, places and relations, and names the objects that it recognizes; of others it says the class
    alone, unless an AltText names one of this class. hallucination_rate: h; the k-th attribute of a caption is replaced
    by a wrong one with probability min(1, h k / 10), so that dense captions are the least accurate.
    """

    classes: Mapping[str, str]
    """Class of each entity, a noun such as "animal"."""
    recognized: frozenset[str] = frozenset()
    """Entities that it names itself."""
    hallucination_rate: float = 0.0
    seed: int = 0
    facts: Callable[[Corpus, int], SceneFacts] = scene_facts

    def __call__(self, corpus: Corpus, rows: Sequence[int], form: str, alt_texts: Sequence[str]) -> list[str]:
        each = zip(rows, alt_texts, strict=True)
        return [self.write(corpus.key(row), self.facts(corpus, row), form, alt_text).text for row, alt_text in each]

    def write(self, key: str, facts: SceneFacts, form: str, alt_text: str = "") -> WrittenCaption:
        """Write the caption of a scene. Raises UserError for an unknown format."""
        control_prompt(form)
        writer = _Writer(self, np.random.default_rng([self.seed, zlib.crc32(f"{key}/{form}".encode())]))
        nouns = [self._noun(one.name) for one in facts.objects]
        if form == "afc":
            nouns = self._fused([one.name for one in facts.objects], nouns, alt_text)
        numbers = sorted(range(len(nouns)), key=lambda number: SIZES[::-1].index(facts.objects[number].size))
        if form == "ssc":  # the two largest objects, with the color of what has no name
            phrases = [
                writer.phrase(facts.objects[number], nouns[number], color=nouns[number] not in self.recognized)
                for number in numbers[:2]
            ]
            return writer.done(f"{' and '.join(phrases)}.")
        dense = form == "dsc_plus"
        sentences = []
        for number in numbers if dense else numbers[:3]:
            phrase = writer.phrase(facts.objects[number], nouns[number], size=True, color=True)
            where = writer.attribute(facts.objects[number].place, AREAS) if dense else ""
            sentences.append(f"{phrase} is at the {where} of the image." if dense else f"there is {phrase}.")
        if dense:
            for source, relation, target in facts.relations[:3]:
                wrong = [one for one in ("left of", "above") if (source, one, target) not in facts.relations]
                wording = writer.attribute(relation, [relation, *wrong])
                sentences.append(f"the {nouns[source]} is {wording} the {nouns[target]}.")
        return writer.done(" ".join(sentences))

    def _noun(self, name: str) -> str:
        return name if name in self.recognized else self.classes[name]

    def _fused(self, names: list[str], nouns: list[str], alt_text: str) -> list[str]:
        """Nouns that are classes give way to entities of AltText of these classes, right or wrong."""
        words = re.findall(r"[\w'-]+", alt_text.lower())
        parts = (part for word in words for part in ([word] if word in self.classes else word.split("-")))
        named = [part for part in parts if part in self.classes]
        unused = [word for word in dict.fromkeys(named) if word not in nouns]
        fused = []
        for noun in nouns:
            fitting = [word for word in unused if self.classes[word] == noun]
            fused.append(fitting[0] if fitting else noun)
            unused = [word for word in unused if word != fused[-1]]
        return fused


class _Writer:
    """What a caption says so far, with wrong attributes at the captioner's rate."""

    def __init__(self, captioner: TemplateCaptioner, rng: np.random.Generator):
        self.captioner, self.rng, self.truths = captioner, rng, list[bool]()

    def phrase(self, one: SceneObject, noun: str, size: bool = False, color: bool = False) -> str:
        """A noun phrase, whose first assertion is that there is such an object."""
        self.truths.append(noun in (one.name, self.captioner.classes[one.name]))
        words = [self.attribute(one.size, SIZES)] if size else []
        words += [self.attribute(one.color, COLORS)] if color else []
        return with_article(" ".join([*words, noun]))

    def attribute(self, value: str, values: Sequence[str]) -> str:
        """A value, or another one."""
        others = [other for other in values if other != value]
        wrong = bool(others) and self.rng.random() < self.captioner.hallucination_rate * len(self.truths) / 10
        self.truths.append(not wrong)
        return str(self.rng.choice(others)) if wrong else value

    def done(self, text: str) -> WrittenCaption:
        return WrittenCaption(text, tuple(self.truths))


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def noisy_alt_text(names: Sequence[str], others: Sequence[str], noise: float, rng: np.random.Generator) -> str:
    """Return AltText as on web pages: some of the names, and clutter such as file names and vendor words.

    noise: probability that the names are of another image (others). Half of the texts name everything.
    """
    named = list(others if rng.random() < noise else names)
    if rng.random() < 0.5:
        named = [named[place] for place in sorted(rng.permutation(len(named))[: int(rng.integers(1, len(named) + 1))])]
    clutter = CLUTTER[int(rng.integers(len(CLUTTER)))].format(number=int(rng.integers(100, 9999)))
    separator = (" ", "-", ", ")[int(rng.integers(3))]
    return f"{separator.join(named)} {clutter}"
