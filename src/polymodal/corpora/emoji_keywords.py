"""Emoji with their English name and each of their keywords as a caption of its own, for retrieval under ambiguity.

A name ("hot pepper") fits one emoji, a keyword ("food", "animal") as many as have it: the number of images with the
same caption is the caption's ambiguity. Splits are those of `emoji`, whose near-duplicates never straddle one. `train`
has images of Google, Twitter and Fluent, `validation` and `test` of Google; `test_openmoji` has a style that is never
trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Category, Image, Modality, Text
from polymodal.modalities.text import stored_texts

UNSEEN = "openmoji"

about = About(
    name="emoji_keywords",
    description="4,767 images of 1,911 emoji with the name and every keyword as a caption, of which many fit several",
    license="as of the corpus 'emoji'",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "category"),
    composed="keywords are captions",
)


def emoji_keywords() -> Corpus:
    """Open the corpus, preparing it and `emoji` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": Text({"en": 1.0}),
        "category": Category(),
        "vendor": Category(),
    }
    return open_prepared(about, columns, _rows)


def captions_of(captions: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the English name and the different keywords, in lower case, of the captions of `emoji`."""
    english = [caption["text"].lower() for caption in captions if caption["language"] == "en"]
    name, keywords = english[0], [word for line in english[1:] for word in line.split(", ")]
    return list(dict.fromkeys([name, *(word.strip() for word in keywords if word.strip())]))


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn = emoji()
    named = ("train", "validation", "test")
    split_of = {drawn.raw(int(row), "group"): split for split in named for row in drawn.splits[split]}
    for row in prepare.track(range(len(drawn)), "Reading emoji", len(drawn)):
        vendor, split = drawn.raw(row, "vendor"), split_of[drawn.raw(row, "group")]
        if vendor == UNSEEN:
            split = "test_openmoji" if split == "test" else ""
        elif vendor != "google" and split != "train":
            split = ""
        if split:
            yield {
                "key": drawn.key(row),
                "split": split,
                "image": drawn.raw(row, "image"),
                "captions": [stored_texts(text)[0] for text in captions_of(drawn.raw(row, "captions"))],
                "category": drawn.raw(row, "category"),
                "vendor": vendor,
            }
