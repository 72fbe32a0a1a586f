"""Records of emoji for record linkage: the image of a vendor with a text that was read with errors.

A class is an emoji, its records are those of four vendors. A record's text is the emoji's English name or some of its
keywords, of whose characters up to 40 % are wrong, as in `firm_names`, which has the same splits: `test` and
`validation` with a rate that is sampled for each record, and `_clean` and `_noisy` ones with the same images. Splits
are those of `emoji`, whose near-duplicates never straddle one: no emoji of a test split is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polymodal.corpora._ocr import read_texts
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Category, Image, Modality, Text
from polymodal.modalities.text import stored_texts

MAX_KEYWORDS = 4

about = About(
    name="emoji_records",
    description="7,000 records of 1,911 emoji by four vendors with texts read with errors, for record linkage",
    license="as of the corpus 'emoji'",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "category"),
    composed="errors of OCR are sampled",
)


def emoji_records() -> Corpus:
    """Open the corpus, preparing it and `emoji` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {"image": Image(), "text": Text({"en": 1.0}), "emoji": Category()}
    return open_prepared(about, columns, _rows, label="emoji", prompts=lambda name: (name,))


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn, rng = emoji(), np.random.default_rng(0)
    of_google = [(split, int(row)) for split in ("train", "validation", "test") for row in drawn.splits[split]]
    split_of = {drawn.raw(row, "group"): split for split, row in of_google}
    for row in prepare.track(range(len(drawn)), "Reading texts", len(drawn)):
        name, *keywords = [text["text"] for text in drawn.raw(row, "captions") if text["language"] == "en"]
        text = surface_form(name, keywords[0].split(", ") if keywords else [], rng)
        for split, read in read_texts(text, split_of[drawn.raw(row, "group")], rng):
            yield {
                "key": f"{split}/{drawn.key(row)}",
                "split": split,
                "image": drawn.raw(row, "image"),
                "text": stored_texts(read),
                "emoji": drawn.raw(row, "concept"),
            }


def surface_form(name: str, keywords: list[str], rng: np.random.Generator) -> str:
    """Return the name, or some of the keywords in any order."""
    if not keywords or rng.random() < 0.5:
        return name
    return ", ".join(rng.permutation(keywords)[:MAX_KEYWORDS].tolist())
