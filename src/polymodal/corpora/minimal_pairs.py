"""Two objects in a scene, and captions that say who is where: pairs of images whose captions have the same words.

A caption is "a large otter left of a small tent" or "a small dove above a large sled": two of twelve objects, their
sizes, and a relation of their places. Every two rows of `test` are a minimal pair in the form of Winoground (Thrush et
al. 2022): in one half of the pairs, the objects change places (relation), in the other their sizes (attribute). Both
captions of a pair are about as frequent in `test`, so that a language model alone says nothing.

In training, one order of two objects is ten times as frequent as the other: which one differs from pair to pair.
`test_prior` has the frequencies of training, `validation` those of `test`. So a test has another prior of captions than
training, or the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.scenes import Sprite, sprites_of
from polymodal.modalities import Category, Graph, Image, Modality, Regions, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.text import stored_texts

SIDE, SKEW = 64, 10  # pixels; how many times as frequent one order is in training
OBJECTS = (
    *("dove", "otter", "octopus", "raccoon", "lobster", "watermelon"),
    *("pretzel", "tent", "violin", "locomotive", "sled", "bomb"),
)
PAIRS = {"validation": 100, "test": 200}  # two rows each
SAMPLED = {"train": 6000, "test_prior": 400}
RELATIONS = ("left of", "above")
SIZES = ("small", "large")

about = About(
    name="minimal_pairs",
    description="6,000 scenes of two objects, and pairs of images whose captions have the same words in another order",
    license="images: Noto Emoji (Apache-2.0); texts: Unicode CLDR (Unicode-3.0)",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "regions", "graph", "category"),
    composed="every image and text is composed",
)


def minimal_pairs() -> Corpus:
    """Open the corpus, composing it once (some seconds)."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "caption": Text(),
        "regions": Regions(),
        "relations": Graph(),
        "kind": Category(("relation", "attribute", "sampled")),
    }
    return open_prepared(about, columns, _rows)


def caption(names: Sequence[str], relation: str) -> str:
    """Compose a caption: 'a small cat left of a large bus'."""
    return f"a {names[0]} {relation} a {names[1]}"


def compose(
    sprites: Sequence[Sprite], sizes: Sequence[str], relation: str, rng: np.random.Generator
) -> tuple[PILImage.Image, list[list[int]]]:
    """Paste two sprites, the first left of or above the second; return the image and their boxes.

    Along the other axis they overlap, so that no other relation holds.
    """
    image = PILImage.new("RGB", (SIDE, SIDE), tuple(int(value) for value in rng.integers(170, 256, size=3)))
    axis, boxes = RELATIONS.index(relation), []
    for number, (sprite, size) in enumerate(zip(sprites, sizes, strict=True)):
        extent = int(SIDE * rng.uniform(*((0.38, 0.46) if size == "large" else (0.2, 0.26))))
        pasted = ImageOps.contain(sprite.image, (extent, extent), PILImage.Resampling.LANCZOS)
        pasted = ImageOps.mirror(pasted) if rng.random() < 0.5 else pasted
        extents, corner = pasted.size, [0, 0]
        half = SIDE // 2
        corner[axis] = number * half + int(rng.integers(0, half - extents[axis] + 1))
        middle = half + int(rng.integers(-SIDE // 12, SIDE // 12 + 1))  # each covers the line through the center
        corner[1 - axis] = min(max(middle - extents[1 - axis] // 2, 0), SIDE - extents[1 - axis])
        image.paste(pasted, (corner[0], corner[1]), pasted)
        boxes.append([*corner, corner[0] + extents[0], corner[1] + extents[1]])
    return image, boxes


def _rows(prepare: Preparation) -> Iterator[Row]:
    sprites = [sprite for sprite in sprites_of("google") if sprite.name in OBJECTS]
    count = len(sprites)
    frequent = np.random.default_rng(100).random((count, count)) < 0.5  # whether i before j (i < j) is frequent

    def row(split: str, number: int, places: Sequence[int], sizes: Sequence[str], relation: str, kind: str) -> Row:
        shown = [sprites[place] for place in places]
        image, boxes = compose(shown, sizes, relation, rng)
        names = [f"{size} {sprite.name}" for size, sprite in zip(sizes, shown, strict=True)]
        return {
            "key": f"{split}/{number}",
            "split": split,
            "image": encoded(image),
            "caption": stored_texts(caption(names, relation)),
            "regions": [{"name": name, "box": box} for name, box in zip(names, boxes, strict=True)],
            "relations": {"nodes": names, "edges": [{"source": 0, "target": 1, "relation": relation}]},
            "kind": kind,
        }

    def sampled() -> tuple[list[int], list[str], str]:
        places = rng.choice(len(sprites), size=2, replace=False).tolist()
        return places, [SIZES[int(n)] for n in rng.integers(2, size=2)], RELATIONS[int(rng.integers(2))]

    for seed, (split, number_of) in enumerate(SAMPLED.items()):
        rng = np.random.default_rng(seed)
        for number in prepare.track(range(number_of), f"Composing scenes, {split}"):
            places, sizes, relation = sampled()
            low, high = sorted(places)
            ordered = (low, high) if frequent[low, high] else (high, low)
            usual = rng.random() < SKEW / (SKEW + 1)
            yield row(split, number, ordered if usual else ordered[::-1], sizes, relation, "sampled")
    for seed, (split, number_of) in enumerate(PAIRS.items(), start=len(SAMPLED)):
        rng = np.random.default_rng(seed)
        for number in prepare.track(range(number_of), f"Composing pairs, {split}"):
            places, sizes, relation = sampled()
            kind = ("relation", "attribute")[number % 2]
            if kind == "attribute":
                sizes = [*SIZES][:: int(rng.choice([-1, 1]))]
            # Objects take their sizes with them in the one kind, and stay where they are in the other.
            other = (places[::-1], sizes[::-1]) if kind == "relation" else (places, sizes[::-1])
            yield row(split, 2 * number, places, sizes, relation, kind)
            yield row(split, 2 * number + 1, *other, relation, kind)
