"""One of 120 emoji in an image, described in seven languages: new arrangements of known things.

The sprites are those of `scenes` (animals, food, objects, vehicles). An image has one on a pale ground, large or
small, at a random place, half of them mirrored. A caption says size, color (the nearest name of its commonest hue) and
the name of Unicode CLDR: "a small yellow tiger", "klein, gelb, Tiger", "маленький, жёлтый, тигр".
`train`, `validation` and `test` are different arrangements of Google's drawings; the objects of `test_twitter` are
Twitter's drawings of the same things.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.corpora.scenes import CONCEPTS, sprites_of
from polymodal.modalities import Category, Image, Modality, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.text import stored_texts

LANGUAGES = ("en", "de", "fr", "es", "ru", "hi", "zh")
SIDE = 64  # pixels
COUNTS = {"train": 3000, "validation": 120, "test": 240, "test_twitter": 240}
EXTENTS = {"large": (0.75, 0.95), "small": (0.35, 0.5)}  # of the longer side, as a fraction of the image's
WORDS = {  # in the order of LANGUAGES; objects have no gender here
    "large": ("large", "groß", "grand", "grande", "большой", "बड़ा", "大"),
    "small": ("small", "klein", "petit", "pequeño", "маленький", "छोटा", "小"),
    "red": ("red", "rot", "rouge", "rojo", "красный", "लाल", "红色"),
    "orange": ("orange", "orange", "orange", "naranja", "оранжевый", "नारंगी", "橙色"),
    "yellow": ("yellow", "gelb", "jaune", "amarillo", "жёлтый", "पीला", "黄色"),
    "green": ("green", "grün", "vert", "verde", "зелёный", "हरा", "绿色"),
    "cyan": ("cyan", "türkis", "cyan", "cian", "голубой", "फ़िरोज़ी", "青色"),
    "blue": ("blue", "blau", "bleu", "azul", "синий", "नीला", "蓝色"),
    "purple": ("purple", "lila", "violet", "morado", "фиолетовый", "बैंगनी", "紫色"),
    "pink": ("pink", "rosa", "rose", "rosado", "розовый", "गुलाबी", "粉色"),
    "brown": ("brown", "braun", "brun", "marrón", "коричневый", "भूरा", "棕色"),
    "black": ("black", "schwarz", "noir", "negro", "чёрный", "काला", "黑色"),
    "white": ("white", "weiß", "blanc", "blanco", "белый", "सफ़ेद", "白色"),
    "grey": ("grey", "grau", "gris", "gris", "серый", "धूसर", "灰色"),
}

about = About(
    name="named_objects",
    description="3,600 composed images of one of 120 emoji, with captions in 7 languages",
    license="images: Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0); texts: Unicode CLDR (Unicode-3.0)",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "category"),
    composed="every image and text is composed",
)


def named_objects() -> Corpus:
    """Open the corpus, composing it and preparing `emoji` once. Raises UserError when that is not possible."""
    weights = dict.fromkeys(LANGUAGES, 1.0) | {"en": float(len(LANGUAGES))}
    columns: dict[str, Modality] = {"image": Image(), "captions": Text(weights), "object": Category()}
    return open_prepared(about, columns, _rows)


def _rows(prepare: Preparation) -> Iterator[Row]:
    names, sprites = _names(), {vendor: sprites_of(vendor) for vendor in ("google", "twitter")}
    for place, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(place)
        order = np.concatenate([rng.permutation(CONCEPTS) for _ in range(-(-count // CONCEPTS))])[:count]
        for number in prepare.track(range(count), f"Composing images, {split}"):
            sprite = sprites["twitter" if split == "test_twitter" else "google"][order[number]]
            size = str(rng.choice(list(EXTENTS)))
            lists = [
                {
                    "text": f"{WORDS[size][n]}, {WORDS[sprite.color][n]}, {names[sprite.name][language]}",
                    "language": language,
                }
                for n, language in enumerate(LANGUAGES)
                if n
            ]
            yield {
                "key": f"{split}/{number}",
                "split": split,
                "image": encoded(arranged(sprite.image, size, rng)),
                "captions": [*stored_texts(f"a {size} {sprite.color} {sprite.name}"), *lists],
                "object": sprite.name,
            }


def arranged(sprite: PILImage.Image, size: str, rng: np.random.Generator) -> PILImage.Image:
    """Paste a sprite, large or small, at a random place on a pale ground; half of them are mirrored."""
    ground = tuple(int(value) for value in rng.integers(170, 256, size=3))
    image, extent = PILImage.new("RGB", (SIDE, SIDE), ground), int(SIDE * rng.uniform(*EXTENTS[size]))
    pasted = ImageOps.contain(sprite, (extent, extent), PILImage.Resampling.LANCZOS)
    if rng.random() < 0.5:
        pasted = ImageOps.mirror(pasted)
    left, top = (int(rng.integers(0, SIDE - side + 1)) for side in pasted.size)
    image.paste(pasted, (left, top), pasted)
    return image


def _names() -> dict[str, dict[str, str]]:
    """English name -> language -> name."""
    drawn = emoji()
    names: dict[str, dict[str, str]] = {}
    for row in range(len(drawn)):
        by_language: dict[str, str] = {}
        for caption in drawn.raw(row, "captions"):
            by_language.setdefault(caption["language"], caption["text"])  # the first one is the name
        names.setdefault(drawn.raw(row, "concept"), by_language)
    return names
