"""Composed images of a few things of a few kinds, with questions of counting and comparing and how to work them out.

Things are emoji of twelve kinds, one to three of each of one to three kinds, on a coloured ground. Every answer and
its working ("duck 2, key 1, so 3") follow from what was drawn. `train`, `validation` and `test` are different images
of Google's drawings; the things of `test_twitter` are Twitter's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.scenes import SIDE, Sprite, sprites_of
from polymodal.modalities import Image, Modality, Questions, Regions, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.question import stored_questions
from polymodal.modalities.text import stored_texts

KINDS = (
    "banana",
    "bomb",
    "cat",
    "duck",
    "grapes",
    "key",
    "mushroom",
    "octopus",
    "parrot",
    "snowflake",
    "taxi",
    "whale",
)
COUNTS = {"train": 6000, "validation": 200, "test": 500, "test_twitter": 500}

about = About(
    name="counting",
    version=2,
    description="7,200 composed images of 1 to 9 emoji, with questions of counting and comparing, and their working",
    license="images: Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0); texts: Unicode CLDR (Unicode-3.0)",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "regions", "questions"),
    composed="every image and text is composed",
)


def counting() -> Corpus:
    """Open the corpus, composing it once (some seconds)."""
    columns: dict[str, Modality] = {"image": Image(), "caption": Text(), "regions": Regions(), "questions": Questions()}
    return open_prepared(about, columns, _rows)


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawings = {
        vendor: {sprite.name: sprite for sprite in sprites_of(vendor) if sprite.name in KINDS}
        for vendor in ("google", "twitter")
    }
    for place, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(place)
        sprites = drawings["twitter" if split == "test_twitter" else "google"]
        for number in prepare.track(range(count), f"Composing images to count, {split}"):
            kinds = sorted(rng.choice(KINDS, size=rng.integers(1, 4), replace=False).tolist())
            there = {kind: int(rng.integers(1, 4)) for kind in kinds}
            image, regions = compose([sprites[kind] for kind, many in there.items() for _ in range(many)], rng)
            yield {
                "key": f"{split}/{number}",
                "split": split,
                "image": encoded(image),
                "caption": stored_texts(f"{listed(there)}."),
                "regions": regions,
                "questions": counting_questions(there, rng),
            }


def compose(
    sprites: list[Sprite], rng: np.random.Generator, shares: Sequence[tuple[float, float]] | None = None
) -> tuple[PILImage.Image, list[dict]]:
    """Place sprites on a pale background, each in its own cell of a 3 x 3 grid.

    shares: range of the longer side of sprites relative to the image, at most a third; by default 20 to 28 %.
    """
    shares = shares or [(0.20, 0.28)] * len(sprites)
    ground = tuple(int(value) for value in rng.integers(170, 256, size=3))
    image, regions, cell = PILImage.new("RGB", (SIDE, SIDE), ground), [], SIDE // 3
    places = rng.permutation(9)[: len(sprites)].tolist()
    for sprite, place, (least, most) in zip(sprites, places, shares, strict=True):
        extent = int(SIDE * rng.uniform(least, most))
        pasted = ImageOps.contain(sprite.image, (extent, extent), PILImage.Resampling.LANCZOS)
        left, top = (
            corner * cell + int(rng.integers(0, cell - size + 1))
            for corner, size in zip((place % 3, place // 3), pasted.size, strict=True)
        )
        image.paste(pasted, (left, top), pasted)
        regions.append({"name": sprite.name, "box": [left, top, left + pasted.width, top + pasted.height]})
    return image, regions


def listed(there: Mapping[str, int]) -> str:
    """Format counts: 'duck 2, key 1'."""
    return ", ".join(f"{kind} {many}" for kind, many in there.items())


def counting_questions(there: Mapping[str, int], rng: np.random.Generator) -> list[dict[str, str]]:
    """Return questions about the numbers of some kinds, one of which may be absent."""
    total = str(sum(there.values()))
    absent = sorted(set(KINDS) - set(there))
    own, *others = rng.permutation(list(there)).tolist()
    other = others[0] if others and rng.random() < 0.7 else absent[int(rng.integers(len(absent)))]
    pair = {kind: there.get(kind, 0) for kind in sorted((own, other))}
    one, two = rng.permutation(list(pair)).tolist()
    together, more = str(sum(pair.values())), "yes" if pair[one] > pair[two] else "no"
    seen = absent[int(rng.integers(len(absent)))] if rng.random() < 0.5 else own
    return stored_questions(
        [
            ("How many things are there?", total, "count", rationale(there, total)),
            (f"How many {own} are there?", str(there[own]), "count one"),
            (f"How many {one} and {two} are there?", together, "sum", rationale(pair, together)),
            (f"Are there more {one} than {two}?", more, "compare", rationale(pair, more)),
            (f"Is there a {seen}?", "yes" if seen in there else "no", "presence"),
        ]
    )


def rationale(there: Mapping[str, int], answer: str) -> str:
    """Format the rationale of an answer: 'duck 2, key 1, so 3.'."""
    return f"{listed(there)}, so {answer}."
