"""Composed scenes: two to four emoji on a coloured ground, with a caption, a box and a mask for each object.

The sprites are 120 concepts of the `emoji` corpus that are pictures of things (animals, food, objects, vehicles).
`train`, `validation` and `test` are different arrangements of Google's drawings; the objects of `test_twitter` are
Twitter's drawings of the same concepts, none of which was seen in training. Masks and boxes are for evaluation: no
method trains on them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage
from PIL import ImageOps
from rich.progress import track

from polymodal.corpora._cache import prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Image, Mask, Regions, Text

SIDE = 96  # pixels
CONCEPTS = 120
COUNTS = {"train": 4000, "validation": 200, "test": 400, "test_twitter": 400}
FORMAT = 1  # raised when preparation changes, so that an old cache is not read
CATEGORIES = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")

about = About(
    name="scenes",
    description="5,000 composed pictures of 2 to 4 emoji, with captions, boxes and masks",
    licence="pictures: Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0); texts: Unicode CLDR (Unicode-3.0)",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "regions", "mask"),
)

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "image": pa.binary(),
        "caption": pa.string(),
        "regions": pa.list_(pa.struct({"name": pa.string(), "box": pa.list_(pa.int32())})),
        "mask": pa.binary(),
        "split": pa.string(),
    }
)


@dataclass(frozen=True)
class Sprite:
    """A cut-out picture of one concept, cropped to what is not transparent."""

    name: str
    picture: PILImage.Image


def scenes() -> Corpus:
    """Open the corpus, after composing it (some seconds, once) when it is not in the cache."""
    folder = prepared(f"scenes-{FORMAT}", _prepare)
    table = pa.ipc.open_file(pa.memory_map(str(folder / "scenes.arrow"))).read_all()
    split = np.array(table.column("split").to_pylist())
    return Corpus(
        about=about,
        table=table,
        columns={"image": Image(), "caption": Text(), "regions": Regions(), "mask": Mask()},
        splits={name: np.flatnonzero(split == name) for name in COUNTS},
        keys="key",
        choices={"corpus": "scenes"},
    )


def compose(
    sprites: list[Sprite], rng: np.random.Generator, side: int = SIDE
) -> tuple[PILImage.Image, np.ndarray, list[dict]]:
    """Paste sprites on a pale ground without overlap. Returns picture, mask (0 ground, k the k-th sprite) and regions.

    An object is large (36 to 46 % of the side) or small (22 to 30 %), which its name says, and faces either way.
    """
    ground = tuple(int(value) for value in rng.integers(170, 256, size=3))
    picture, mask = PILImage.new("RGB", (side, side), ground), np.zeros((side, side), dtype=np.uint8)
    regions = []
    for number, sprite in enumerate(sprites, start=1):
        for _ in range(60):
            large = bool(rng.random() < 0.5)
            extent = int(side * rng.uniform(*((0.36, 0.46) if large else (0.22, 0.30))))
            pasted = ImageOps.contain(sprite.picture, (extent, extent), PILImage.Resampling.LANCZOS)
            if rng.random() < 0.5:
                pasted = ImageOps.mirror(pasted)
            left, top = (int(rng.integers(0, side - size + 1)) for size in pasted.size)
            right, bottom = left + pasted.width, top + pasted.height
            if not mask[top:bottom, left:right].any():
                picture.paste(pasted, (left, top), pasted)
                mask[top:bottom, left:right][np.asarray(pasted.getchannel("A")) > 127] = number
                name = f"{'large' if large else 'small'} {sprite.name}"
                regions.append({"name": name, "box": [left, top, right, bottom]})
                break
        else:
            return compose(sprites, rng, side)
    return picture, mask, regions


def caption(names: list[str]) -> str:
    """'a small cat, a large bus and a large pear'."""
    words = [f"a {name}" for name in names]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _prepare(folder: Path) -> None:
    sprites = {vendor: _sprites(vendor) for vendor in ("google", "twitter")}
    rows = []
    for place, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(place)
        drawn_by = sprites["twitter" if split == "test_twitter" else "google"]
        for number in track(range(count), f"Composing scenes, {split}", transient=True):
            chosen = rng.choice(len(drawn_by), size=rng.integers(2, 5), replace=False)
            picture, mask, regions = compose([drawn_by[index] for index in chosen], rng)
            rows.append(
                {
                    "key": f"{split}/{number}",
                    "image": _png(picture),
                    "caption": caption([region["name"] for region in regions]),
                    "regions": regions,
                    "mask": _png(PILImage.fromarray(mask)),
                    "split": split,
                }
            )
    with pa.ipc.new_file(str(folder / "scenes.arrow"), SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), max_chunksize=256)


def _sprites(vendor: str) -> list[Sprite]:
    """The same concepts in the same order for every vendor."""
    corpus = emoji()
    found: dict[str, Sprite] = {}
    for row in range(len(corpus)):
        if corpus.raw(row, "vendor") != vendor or corpus.raw(row, "category") not in CATEGORIES:
            continue
        name = corpus.raw(row, "concept")
        picture = corpus.value(row, "image").convert("RGBA")
        box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
        if box is not None and name.isascii() and " " not in name:  # one word: its tokens belong to one object
            found.setdefault(name, Sprite(name, picture.crop(box)))
    order = np.random.default_rng(0).permutation(sorted(found))
    return [found[name] for name in order[:CONCEPTS]]


def _png(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
