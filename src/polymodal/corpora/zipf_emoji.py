"""Image-text pairs whose concepts, languages and vendors have long tails, as on the web: for studies of data scale.

A pair is a vendor's image of an emoji with its name, or some of its keywords, in one language. 300 emoji follow the
Zipf-Mandelbrot law in a random order. English has the largest part of the languages and Japanese the second, as in
WebLI, seven languages less than 1 % each; Google has 72 % of the images, OpenMoji 2 %. Pairs that occur twice are left
out, which flattens these laws: of what is left, English has 18 % and Swahili 0.7 %, Google 59 % and OpenMoji 5 %. A
tenth of the pairs, sampled uniformly, has English texts of nine in ten concepts of the head and of a third of those of
the tail; all pairs have them of nearly all.

Emoji of `train` are those of the tests, in other images: turned, smaller and on another background. `test` has one of
Google's image of each emoji, `test_vendors` one of another vendor's, sampled uniformly, and `validation` a further one
of Google's of some; all with names in all 20 languages. Emoji that look alike (gender variants, skin tones, clocks) are
represented by one of them.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Category, Image, Modality, Text
from polymodal.modalities.image import open_image
from polymodal.modalities.text import stored_texts

CONCEPTS, PAIRS, VALIDATION = 300, 30_000, 100
MAX_KEYWORDS, EXPONENT = 6, 4.0
VENDORS = {"google": 0.72, "twitter": 0.2, "fluent": 0.06, "openmoji": 0.02}
LOW_RESOURCE = {"hi": 0.009, "he": 0.008, "th": 0.007, "el": 0.006, "ta": 0.004, "bn": 0.003, "sw": 0.003}
LANGUAGES = {
    "en": 0.354,
    "ja": 0.088,
    "de": 0.08,
    "es": 0.075,
    "fr": 0.07,
    "ru": 0.065,
    "pt": 0.05,
    "zh": 0.045,
    "ko": 0.04,
    "ar": 0.03,
    "tr": 0.025,
    "vi": 0.02,
    "uk": 0.018,
    **LOW_RESOURCE,
}

about = About(
    name="zipf_emoji",
    description="30,000 pairs of 300 emoji by four vendors and texts in 20 languages with long tails of all three",
    license="as of the corpus 'emoji'",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "category"),
    composed="frequencies of concepts, languages and vendors are sampled",
    version=2,
)


def zipf_emoji() -> Corpus:
    """Open the corpus, preparing it and `emoji` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": Text(LANGUAGES),
        "concept": Category(),
        "vendor": Category(tuple(VENDORS)),
    }
    return open_prepared(about, columns, _rows)


def zipf(count: int) -> np.ndarray:
    """Return probabilities of ranks by the Zipf-Mandelbrot law, proportional to (rank + count / 4)^-4."""
    weights = (np.arange(1, count + 1) + count / 4) ** -EXPONENT
    return weights / weights.sum()


def texts_of(captions: Sequence[Mapping[str, str]], language: str) -> list[str]:
    """Return what a page may say of an emoji in a language: its name, then up to three of its first six keywords."""
    name, *keywords = [caption["text"] for caption in captions if caption["language"] == language]
    words = keywords[0].split(", ")[:MAX_KEYWORDS] if keywords else []
    some = (chosen for count in (1, 2, 3) for chosen in itertools.combinations(words, count))
    return [name, *(", ".join(chosen) for chosen in some)]


def sample_pairs(
    vendors: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], count: int, rng: np.random.Generator
) -> list[tuple[int, int, int, int]]:
    """Return `count` different (concept, vendor, language, text), each by the law of its own; half of texts are names.

    vendors: for each concept, by falling frequency, the vendors that have an image. texts: the number of texts of each
    concept in each language.
    """
    pairs: dict[tuple[int, int, int, int], None] = {}
    laws = (zipf(len(vendors)), np.array([*VENDORS.values()]), np.array([*LANGUAGES.values()]))
    while len(pairs) < count:
        drawn = [rng.choice(len(law), count, p=law / law.sum()).tolist() for law in laws]
        for concept, vendor, language, place in zip(*drawn, rng.uniform(-1, 1, count).tolist(), strict=True):
            if vendor in vendors[concept] and len(pairs) < count:
                text = 1 + int(place * (texts[concept][language] - 1)) if place > 0 else 0
                pairs[concept, vendor, language, min(text, texts[concept][language] - 1)] = None
    return list(pairs)


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn, rng = emoji(), np.random.default_rng(0)
    table = drawn.table.select(["concept", "group", "vendor"]).to_pylist()
    image_of = {(record["concept"], record["vendor"]): row for row, record in enumerate(table)}
    flags = {drawn.raw(row, "concept") for row in range(len(drawn)) if drawn.raw(row, "category") == "Flags"}
    represented = {
        record["concept"] if record["concept"] in flags else record["group"]: record["concept"]
        for record in reversed(table)
        if record["vendor"] == "google"
    }
    concepts = rng.permutation(sorted(represented.values()))[:CONCEPTS].tolist()
    vendors, languages = list(VENDORS), list(LANGUAGES)
    there = [[n for n, vendor in enumerate(vendors) if (name, vendor) in image_of] for name in concepts]
    texts = [[texts_of(drawn.raw(image_of[name, "google"], "captions"), one) for one in languages] for name in concepts]

    def row(concept: int, vendor: int, captions: list[dict[str, str]]) -> Row:
        name, by = concepts[concept], vendors[vendor]
        image = drawn.raw(image_of[name, by], "image")
        return {"image": image, "captions": captions, "concept": name, "vendor": by}

    pairs = sample_pairs(there, [[len(one) for one in of_name] for of_name in texts], PAIRS, rng)
    for number, (concept, vendor, language, text) in enumerate(prepare.track(pairs, "Pairs", PAIRS)):
        caption = stored_texts(texts[concept][language][text], language=languages[language])
        yield {"key": f"train/{number}", "split": "train"} | row(concept, vendor, caption)
    for split, count in (("validation", VALIDATION), ("test", CONCEPTS), ("test_vendors", CONCEPTS)):
        for concept in np.sort(rng.permutation(CONCEPTS)[:count]).tolist():
            others = there[concept][1:] if split == "test_vendors" else [0]
            names = [stored_texts(of[0], language=one)[0] for one, of in zip(languages, texts[concept], strict=True)]
            held_out = row(concept, int(rng.choice(others)), names)
            image = changed(held_out["image"], rng)
            yield held_out | {"key": f"{split}/{concepts[concept]}", "split": split, "image": image}


def changed(stored: bytes, rng: np.random.Generator) -> bytes:
    """Return an image turned by 8 to 20 degrees, at 75 to 90 % of its size, on a pale background."""
    image = open_image(stored).convert("RGBA")
    side, angle = image.width, float(rng.choice([-1, 1]) * rng.uniform(8, 20))
    size = round(side * rng.uniform(0.75, 0.9))
    turned = image.resize((size, size), PILImage.Resampling.LANCZOS).rotate(angle, PILImage.Resampling.BICUBIC, True)
    background = PILImage.new("RGBA", (side, side), (*rng.integers(215, 256, 3).tolist(), 255))
    background.alpha_composite(turned.crop((0, 0, min(turned.width, side), min(turned.height, side))))
    buffer = io.BytesIO()
    background.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
