"""Emoji as a model of a culture: foods and places, which a base model does not know by name, beside general concepts.

The concepts of Food & Drink and of Travel & Places stand for those of a culture; all others but flags are `general`.
`train` has the general ones as Google and Twitter draw them, and the cultural ones as Google does: choose by `culture`
what a base is trained on. `validation` has the cultural ones of Twitter, and `test` all concepts as Fluent and OpenMoji
draw them, neither of which is trained on. Emoji that look alike (gender variants, skin tones, clocks) are
represented by one of them. Texts are the English name, and the keywords in one line.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Category, Image, Modality, Text

GENERAL = "general"
CULTURES = {"Food & Drink": "food", "Travel & Places": "travel"}  # of categories
LEFT_OUT = "Flags"
SPLITS = {  # of vendors, for general and for cultural concepts
    "google": ("train", "train"),
    "twitter": ("train", "validation"),
    "fluent": ("test", "test"),
    "openmoji": ("test", "test"),
}

about = About(
    name="emoji_cultures",
    description="Emoji by four vendors: foods and places as concepts of a culture, and general concepts",
    license="as of the corpus 'emoji'",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "category"),
    composed="categories of emoji stand for cultures",
)


def emoji_cultures() -> Corpus:
    """Open the corpus, preparing it and `emoji` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": Text({"en": 1.0}),
        "concept": Category(),
        "category": Category(),
        "culture": Category((GENERAL, *CULTURES.values())),
    }
    return open_prepared(about, columns, _rows, further={"vendor": pa.string()})


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn = emoji()
    table = drawn.table.select(["concept", "group", "vendor", "category"]).to_pylist()
    first = {one["group"]: one["concept"] for one in reversed(table) if one["vendor"] == "google"}
    for row, one in enumerate(prepare.track(table, "Reading emoji", len(table))):
        if one["category"] == LEFT_OUT or first[one["group"]] != one["concept"]:
            continue
        culture = CULTURES.get(one["category"], GENERAL)
        yield {
            "key": drawn.key(row),
            "split": SPLITS[one["vendor"]][culture != GENERAL],
            "image": drawn.raw(row, "image"),
            "captions": [text for text in drawn.raw(row, "captions") if text["language"] == "en"],
            "concept": one["concept"],
            "category": one["category"],
            "culture": culture,
            "vendor": one["vendor"],
        }
