"""Composed images of emoji among others of their kind, with referring expressions for one of them, several, or none.

Two or three things of each image are of one kind, so that a name alone is ambiguous: an expression adds size, place, or
what the thing is beside, one to four clauses in all. Referents follow from the composition. `train`, `validation` and
`test` are different arrangements of Google's drawings; the things of `test_twitter` are Twitter's drawings of the same
twelve kinds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.counting import KINDS, compose
from polymodal.corpora.scenes import place_name, relate, sprites_of
from polymodal.modalities import Expressions, Image, Modality, Regions, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.text import stored_texts

COUNTS = {"train": 6000, "validation": 200, "test": 600, "test_twitter": 600}
SIZES = {"large": (0.27, 0.33), "small": (0.15, 0.20)}  # shares of the image's side
WITHOUT_PLACE = 0.7  # share of the expressions that say no place where they can do without
INVERSE = {"left of": "right of", "above": "below"}
CLAUSES = ("size", "place", "relation")  # which may be added to a name
Said = Mapping[str, str]  # clause -> what is said, with "name" always among them

about = About(
    name="referring",
    description="7,400 composed images of 3 to 5 emoji, with expressions that refer to some of them",
    license="images: Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0); texts: Unicode CLDR (Unicode-3.0)",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "expressions", "regions"),
    composed="every image and text is composed",
)


def referring() -> Corpus:
    """Open the corpus, composing it once (half a minute)."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "caption": Text(),
        "expressions": Expressions(),
        "regions": Regions(),
    }
    return open_prepared(about, columns, _rows)


def _rows(prepare: Preparation) -> Iterator[Row]:
    sprites = {
        vendor: [sprite for sprite in sprites_of(vendor) if sprite.name in KINDS] for vendor in ("google", "twitter")
    }
    for place, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(place)
        drawn_by = sprites["twitter" if split == "test_twitter" else "google"]
        for number in prepare.track(range(count), f"Composing images to refer to, {split}"):
            common, *others = (drawn_by[index] for index in rng.choice(len(KINDS), size=3, replace=False))
            chosen = [common] * int(rng.integers(2, 4)) + others[: int(rng.integers(1, 3))]
            sizes = [str(size) for size in rng.choice(list(SIZES), size=len(chosen))]
            image, regions = compose(chosen, rng, [SIZES[size] for size in sizes])
            things = facts(sizes, regions)
            named = [region | {"name": f"{size} {region['name']}"} for size, region in zip(sizes, regions, strict=True)]
            yield {
                "key": f"{split}/{number}",
                "split": split,
                "image": encoded(image),
                "caption": stored_texts(describe_objects(things)),
                "expressions": refer(things, regions, rng),
                "regions": named,
            }


def facts(sizes: Sequence[str], regions: Sequence[Mapping]) -> list[dict[str, set[str]]]:
    """Return every attribute of each object, by clause.

    A relation refers to an object that is the only one of its kind, so that it is unambiguous.
    """
    things = [
        {"name": {region["name"]}, "size": {size}, "place": {_at(region["box"])}, "relation": set()}
        for size, region in zip(sizes, regions, strict=True)
    ]
    names = [region["name"] for region in regions]
    alone = [Counter(names)[name] == 1 for name in names]
    for edge in relate([region["box"] for region in regions]):
        source, target, relation = edge["source"], edge["target"], edge["relation"]
        if alone[target]:
            things[source]["relation"].add(f"{relation} the {names[target]}")
        if alone[source]:
            things[target]["relation"].add(f"{INVERSE[relation]} the {names[source]}")
    return things


def _at(box: list[int]) -> str:
    name = place_name(box)
    return "in the centre" if name == "centre" else f"at the {name}"


def meant(things: Sequence[Mapping[str, set[str]]], said: Said) -> list[int]:
    """Return the indices of all objects for which all clauses are true."""
    return [index for index, thing in enumerate(things) if all(what in thing[clause] for clause, what in said.items())]


def worded(said: Said, plural: bool = False) -> str:
    """Compose an expression: 'the small cat at the top left, above the bus', or 'every small cat ...' for several."""
    words = ["every" if plural else "the", said.get("size", ""), said["name"], said.get("place", "")]
    text = " ".join(word for word in words if word)
    return f"{text}, {said['relation']}" if "relation" in said else text


def describe_objects(things: Sequence[Mapping[str, set[str]]]) -> str:
    """Compose a caption: size, name and place of every object."""
    return "; ".join(" ".join(one for clause in ("size", "name", "place") for one in thing[clause]) for thing in things)


def refer(things: Sequence[Mapping[str, set[str]]], regions: Sequence[Mapping], rng: np.random.Generator) -> list[dict]:
    """Compose one expression per object that can be distinguished, one for several objects, and one for none.

    things: the first of them has others of its kind.
    """
    expressions = []
    for number, thing in enumerate(things):
        if unique := [said for said in _sayings(thing, rng) if meant(things, said) == [number]]:
            if rng.random() < WITHOUT_PLACE:  # for a place tells where a thing is without a look at the image
                unique = [said for said in unique if "place" not in said] or unique
            lengths = sorted({len(said) for said in unique})
            length = lengths[int(rng.integers(len(lengths)))]
            said = next(said for said in unique if len(said) == length)
            expressions.append(_stored(worded(said), [regions[number]], said))
    wide = [said for said in _sayings(things[0], rng) if len(meant(things, said)) > 1]  # at least its name alone
    said = wide[int(rng.integers(len(wide)))]
    expressions.append(_stored(worded(said, plural=True), [regions[number] for number in meant(things, said)], said))
    wrong = _of_nothing(things, rng)
    expressions.append(_stored(worded(wrong), [], wrong))
    return expressions


def _sayings(thing: Mapping[str, set[str]], rng: np.random.Generator) -> list[Said]:
    """Yield all sets of clauses for an object, each including its name, in random order."""
    known = {clause: sorted(thing[clause])[int(rng.integers(len(thing[clause])))] for clause in thing if thing[clause]}
    there = [clause for clause in CLAUSES if clause in known]
    sets = [kept for many in range(len(there) + 1) for kept in itertools.combinations(there, many)]
    return [
        {"name": known["name"]} | {clause: known[clause] for clause in sets[place]}
        for place in rng.permutation(len(sets))
    ]


def _of_nothing(things: Sequence[Mapping[str, set[str]]], rng: np.random.Generator) -> Said:
    """Compose an expression without a referent: half of the time of a kind in the image, with a wrong size or place."""
    there = {name for thing in things for name in thing["name"]}
    sizes, places = tuple(SIZES), [_at([x, y, x, y]) for x in (8, 48, 88) for y in (8, 48, 88)]
    (kind,) = things[0]["name"]
    ways = [("size", size) for size in sizes] + [("place", at) for at in places]
    wrong: list[Said] = [said for clause, what in ways if not meant(things, said := {"name": kind, clause: what})]
    absent = sorted(set(KINDS) - there)
    if rng.random() < 0.5:
        return wrong[int(rng.integers(len(wrong)))]
    return {"name": absent[int(rng.integers(len(absent)))], "size": sizes[int(rng.integers(2))]}


def _stored(text: str, regions: Sequence[Mapping], said: Said) -> dict:
    return {"text": text, "boxes": [region["box"] for region in regions], "clauses": len(said)}
