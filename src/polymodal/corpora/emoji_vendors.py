"""Emoji in the drawings of several vendors, with English names and keywords: several images of a concept in training.

Concepts and splits are those of `emoji`, whose near-duplicates never straddle one: no emoji of a test split is trained
on. `train` has the images of Google, Twitter and Fluent, whose captions are equal for a concept; OpenMoji's style is
never trained on (`test_openmoji`). `validation` and `test` have Google's images.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Category, Image, Modality, Text

UNSEEN = "openmoji"  # the vendor that is never trained on

about = About(
    name="emoji_vendors",
    description="5,400 images of 1,911 emoji: three vendors in training, a fourth in a test, with English captions",
    license="as of the corpus 'emoji'",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "category"),
    composed="rows of 'emoji' in other splits",
)


def emoji_vendors() -> Corpus:
    """Open the corpus, preparing it and `emoji` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": Text({"en": 1.0}),
        "category": Category(),
    }
    return open_prepared(
        about,
        columns,
        _rows,
        further={"concept": pa.string(), "group": pa.string(), "vendor": pa.string()},
        label="category",
        prompts=lambda category: tuple(dict.fromkeys([category.lower(), *category.lower().split(" & ")])),
    )


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn = emoji()
    of_google = [(split, int(row)) for split in ("train", "validation", "test") for row in drawn.splits[split]]
    split_of = {drawn.raw(row, "group"): split for split, row in of_google}
    for row in prepare.track(range(len(drawn)), "Reading emoji", len(drawn)):
        vendor, split = drawn.raw(row, "vendor"), split_of[drawn.raw(row, "group")]
        if (split == "train" and vendor == UNSEEN) or (split == "validation" and vendor != "google"):
            continue
        yield {
            "key": drawn.key(row),
            "split": f"test_{vendor}" if split == "test" and vendor != "google" else split,
            "image": drawn.raw(row, "image"),
            "captions": [text for text in drawn.raw(row, "captions") if text["language"] == "en"],
            **{name: drawn.raw(row, name) for name in ("category", "concept", "group", "vendor")},
        }
