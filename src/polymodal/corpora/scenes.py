"""Composed scenes: two to four emoji on a coloured ground, with captions, boxes, masks, relations and questions.

The sprites are 120 concepts of the `emoji` corpus that are images of things (animals, food, objects, vehicles).
`train`, `validation` and `test` are different arrangements of Google's drawings; the objects of `test_twitter` are
Twitter's drawings of the same concepts, none of which was seen in training. An object is large or small, has a colour
(the nearest name of its commonest hue), a place, and relations to the others. There are three captions: `short` names
the objects, `caption` adds their size, `long` their colour and place. Answers to the questions are computed.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Graph, Image, Mask, Modality, Questions, Regions, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.question import stored_questions
from polymodal.modalities.text import stored_texts

SIDE = 96  # pixels
CONCEPTS = 120
COUNTS = {"train": 4000, "validation": 200, "test": 400, "test_twitter": 400}
CATEGORIES = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")

about = About(
    name="scenes",
    version=3,
    description="5,000 composed images of 2 to 4 emoji, with captions, boxes, masks, relations and questions",
    license="images: Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0); texts: Unicode CLDR (Unicode-3.0)",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "regions", "mask", "graph", "questions"),
    composed="every image and text is composed",
)


@dataclass(frozen=True)
class Sprite:
    """Cut-out image of one concept, cropped to its opaque pixels."""

    name: str
    image: PILImage.Image
    color: str


def scenes() -> Corpus:
    """Open the corpus, composing it once (some seconds)."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "caption": Text(),
        "regions": Regions(),
        "mask": Mask(),
        "short": Text(),
        "long": Text(),
        "relations": Graph(),
        "questions": Questions(),
    }
    return open_prepared(about, columns, _rows)


def compose(
    sprites: list[Sprite], rng: np.random.Generator, side: int = SIDE
) -> tuple[PILImage.Image, np.ndarray, list[dict]]:
    """Paste sprites on a pale background without overlap; return image, mask (0 background, k the k-th sprite) and
    regions.

    An object is large (36 to 46 % of the side) or small (22 to 30 %), which its name says, and randomly flipped.
    """
    ground = tuple(int(value) for value in rng.integers(170, 256, size=3))
    image, mask = PILImage.new("RGB", (side, side), ground), np.zeros((side, side), dtype=np.uint8)
    regions = []
    for number, sprite in enumerate(sprites, start=1):
        for _ in range(60):
            large = bool(rng.random() < 0.5)
            extent = int(side * rng.uniform(*((0.36, 0.46) if large else (0.22, 0.30))))
            pasted = ImageOps.contain(sprite.image, (extent, extent), PILImage.Resampling.LANCZOS)
            if rng.random() < 0.5:
                pasted = ImageOps.mirror(pasted)
            left, top = (int(rng.integers(0, side - size + 1)) for size in pasted.size)
            right, bottom = left + pasted.width, top + pasted.height
            if not mask[top:bottom, left:right].any():
                image.paste(pasted, (left, top), pasted)
                mask[top:bottom, left:right][np.asarray(pasted.getchannel("A")) > 127] = number
                name = f"{'large' if large else 'small'} {sprite.name}"
                regions.append({"name": name, "box": [left, top, right, bottom]})
                break
        else:
            return compose(sprites, rng, side)
    return image, mask, regions


def caption(names: list[str]) -> str:
    """Compose a caption: 'a small cat, a large bus and a large pear'."""
    words = [f"a {name}" for name in names]
    return f"{', '.join(words[:-1])} and {words[-1]}"


HUES = (
    "red",
    "orange",
    "yellow",
    *("green",) * 3,
    "cyan",
    "blue",
    "blue",
    "purple",
    "pink",
    "pink",
)  # every 30 degrees


def color_name(image: PILImage.Image) -> str:
    """Return the name of the most frequent color among the opaque pixels."""
    pixels = np.asarray(image.convert("RGBA")).reshape(-1, 4)
    names: dict[str, int] = {}
    for red, green, blue in pixels[pixels[:, 3] > 127][::3, :3] / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        if value < 0.25:
            name = "black"
        elif saturation < 0.2:
            name = "white" if value > 0.85 else "grey"
        else:
            name = HUES[round(hue * 12) % 12]
            name = "brown" if name in ("red", "orange") and value < 0.65 else name
        names[name] = names.get(name, 0) + 1
    return max(sorted(names), key=lambda name: names[name], default="grey")


def place_name(box: list[int], side: int = SIDE) -> str:
    """Return 'top left', 'center', 'bottom' ...: by thirds of the image."""
    x, y = (box[0] + box[2]) / 2 / side, (box[1] + box[3]) / 2 / side
    words = [
        word
        for word, there in (("top", y < 1 / 3), ("bottom", y > 2 / 3), ("left", x < 1 / 3), ("right", x > 2 / 3))
        if there
    ]
    return " ".join(words) or "centre"


def relate(boxes: list[list[int]]) -> list[dict]:
    """Return the relations 'left of' and 'above' between objects whose boxes do not overlap along that axis, as
    edges."""
    edges = []
    for source, first in enumerate(boxes):
        for target, other in enumerate(boxes):
            for relation, clear in (("left of", first[2] <= other[0]), ("above", first[3] <= other[1])):
                if clear:
                    edges.append({"source": source, "target": target, "relation": relation})
    return edges


def scene_questions(sprites: list[Sprite], regions: list[dict], edges: list[dict], absent: str) -> list[dict[str, str]]:
    """Compose questions with computed answers. absent: a concept that is not in the image."""
    names = [sprite.name for sprite in sprites]
    asked = [
        ("How many things are there?", str(len(names)), "count"),
        (f"Is there a {names[0]}?", "yes", "presence"),
        (f"Is there a {absent}?", "no", "presence"),
    ]
    for name, sprite, region in zip(names, sprites, regions, strict=True):
        asked.append((f"What colour is the {name}?", sprite.color, "colour"))
        asked.append((f"How large is the {name}?", region["name"].split()[0], "size"))
        asked.append((f"Where is the {name}?", place_name(region["box"]), "place"))
    for edge in edges[:3]:
        one, other = names[edge["source"]], names[edge["target"]]
        asked.append((f"Is the {one} {edge['relation']} the {other}?", "yes", "relation"))
        asked.append((f"Is the {other} {edge['relation']} the {one}?", "no", "relation"))
    return stored_questions(asked)


def _rows(prepare: Preparation) -> Iterator[Row]:
    sprites = {vendor: sprites_of(vendor) for vendor in ("google", "twitter")}
    for place, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(place)
        drawn_by = sprites["twitter" if split == "test_twitter" else "google"]
        for number in prepare.track(range(count), f"Composing scenes, {split}"):
            places = rng.choice(len(drawn_by), size=rng.integers(2, 5), replace=False)
            chosen = [drawn_by[index] for index in places]
            image, mask, regions = compose(chosen, rng)
            edges = relate([region["box"] for region in regions])
            absent = drawn_by[next(index for index in range(number % 100, len(drawn_by)) if index not in places)].name
            names = [region["name"] for region in regions]
            colored = [
                f"{region['name'].split()[0]} {sprite.color} {sprite.name} at the {place_name(region['box'])}"
                for sprite, region in zip(chosen, regions, strict=True)
            ]
            yield {
                "key": f"{split}/{number}",
                "split": split,
                "image": encoded(image),
                "caption": stored_texts(caption(names)),
                "short": stored_texts(caption([sprite.name for sprite in chosen])),
                "long": stored_texts(caption(colored)),
                "regions": regions,
                "mask": encoded(PILImage.fromarray(mask)),
                "relations": {"nodes": names, "edges": edges},
                "questions": scene_questions(chosen, regions, edges, absent),
            }


def sprites_of(vendor: str) -> list[Sprite]:
    """Return the same concepts in the same order for every vendor."""
    corpus = emoji()
    found: dict[str, Sprite] = {}
    for row in range(len(corpus)):
        if corpus.raw(row, "vendor") != vendor or corpus.raw(row, "category") not in CATEGORIES:
            continue
        name = corpus.raw(row, "concept")
        image = corpus.value(row, "image").convert("RGBA")
        box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
        if box is not None and name.isascii() and " " not in name:  # one word: its tokens belong to one object
            found.setdefault(name, Sprite(name, image.crop(box), color_name(image.crop(box))))
    order = np.random.default_rng(0).permutation(sorted(found))
    return [found[name] for name in order[:CONCEPTS]]
