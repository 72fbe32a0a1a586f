"""Emoji as images of pages in eight languages, in the 17 columns of WIT: several texts of an image, of different kinds.

A row is Google's image of an emoji on a page of its category in a language. Its caption (REF) is the name, on half of
the pages with a keyword; the alternative text is a keyword; the image's media page (ATTR) has name and keywords in
English and another language, of which a page in one of these gets its part, and any other page both. Context: names of
other emoji of the category, and among them two keywords. English has three pages of an image, another language one of
70 % of them. As in WIT, captions are on 46 % of the pages (and on one in English at least), attributions on 94 %,
alternative texts on 14 %, but for pages without any; rows of the tests have all.

Splits are those of `emoji`: images that are alike are in one split, and a page has images of one. `test_vendors` has
another vendor's image of each test emoji, with texts as in `test`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import SIDE, emoji
from polymodal.corpora.text_fields import COLUMNS, FIELDS, stored_captions
from polymodal.modalities import Image, Modality, Text

LANGUAGES = ("en", "de", "es", "ru", "ar", "hi", "ja", "sw")
ENGLISH_PAGES, OTHER_PAGES, TEST_PAGES = 3, 0.7, 0.5  # pages in English, probabilities of one in another language
PRESENT = {"reference": 0.46, "attribution": 0.94, "alt": 0.14}  # of the rows of the release (README)
VENDORS = ("twitter", "fluent", "openmoji")

about = About(
    name="emoji_pages",
    description="14,700 rows of 1,911 emoji on pages in eight languages: captions, media pages, alternative texts",
    license="as of the corpus 'emoji'",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text"),
    composed="pages are composed of names and keywords",
)


def emoji_pages() -> Corpus:
    """Open the corpus, preparing it and `emoji` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {"image": Image(), "text": Text(dict.fromkeys(LANGUAGES, 0.1) | {"en": 0.3})}
    return open_prepared(about, columns, _rows, further=COLUMNS)


def texts_of(captions: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, list[str]]]:
    """Return name and keywords in each language."""
    by_language: dict[str, list[str]] = defaultdict(list)
    for caption in captions:
        by_language[caption["language"]].append(caption["text"])
    return {
        language: (held[0], held[-1].split(", ")) for language, held in by_language.items() if language in LANGUAGES
    }


def attribution(texts: Mapping[str, tuple[str, list[str]]], spoken: Sequence[str], language: str) -> tuple[str, bool]:
    """Return what a page in a language gets of a media page in the languages `spoken`, and whether it is in its own."""
    parts = {one: f"{texts[one][0]}: {', '.join(texts[one][1][:3])}" for one in spoken}
    return (parts[language], True) if language in parts else ("; ".join(parts.values()), False)


def page_fields(
    texts: Mapping[str, tuple[str, list[str]]],
    language: str,
    spoken: Sequence[str],
    neighbors: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the texts of one page, all that it may have. neighbors: names of emoji of the category."""
    name, keywords = texts[language]
    some = [str(word) for word in rng.permutation(keywords)[:2]]
    of_media, passes = attribution(texts, spoken, language)
    section = [str(word) for word in rng.permutation([*some, *neighbors[:2]])]
    return {
        FIELDS["reference"]: f"{name}, {some[0]}" if rng.random() < 0.5 else name,
        FIELDS["attribution"]: of_media,
        FIELDS["alt"]: some[-1],
        FIELDS["page"]: ", ".join(neighbors),
        FIELDS["section"]: ", ".join(section),
        "attribution_passes_lang_id": passes,
    }


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn, rng = emoji(), np.random.default_rng(0)
    columns = drawn.table.select(["key", "split", "concept", "category", "vendor"]).to_pylist()
    texts = {row: texts_of(drawn.raw(row, "captions")) for row, one in enumerate(columns) if one["vendor"] == "google"}
    names: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row, named in texts.items():
        for language, (name, _) in named.items():
            names[columns[row]["split"], columns[row]["category"], language].append(name)
    others = {(one["concept"], one["vendor"]): row for row, one in enumerate(columns)}
    for row, named in prepare.track(texts.items(), "Pages", len(texts)):
        one, spoken = columns[row], ["en", str(rng.choice(LANGUAGES[1:]))]
        held_out = one["split"] != "train"
        pages = [language for language in LANGUAGES[1:] if rng.random() < (TEST_PAGES if held_out else OTHER_PAGES)]
        pages = ["en"] * (1 if held_out else ENGLISH_PAGES) + [page for page in pages if page in named]
        images = {one["split"]: row}
        having = [others[one["concept"], vendor] for vendor in VENDORS if (one["concept"], vendor) in others]
        if one["split"] == "test" and having:
            images["test_vendors"] = int(rng.choice(having))
        for number, language in enumerate(pages):
            title = names[one["split"], one["category"], language]
            neighbors = [str(name) for name in rng.choice(title, min(4, len(title)), replace=False)]
            fields = page_fields(named, language, [part for part in spoken if part in named], neighbors, rng)
            for field, probability in PRESENT.items():
                is_first = field == "reference" and number == 0
                if rng.random() >= probability and not (held_out or is_first):
                    fields[FIELDS[field]] = None
            if not any(fields[FIELDS[field]] for field in PRESENT):
                continue
            for split, image in images.items():
                page = f"{language}/{split}/{one['category']}"
                record = dict.fromkeys(COLUMNS) | fields | {
                    "language": language,
                    "page_url": page,
                    "image_url": columns[image]["key"],
                    "page_title": one["category"],
                    "hierarchical_section_title": one["category"],
                    "mime_type": "image/png",
                    "original_height": SIDE,
                    "original_width": SIDE,
                    "is_main_image": False,
                }  # fmt: skip
                stored = {"image": drawn.raw(image, "image"), "text": stored_captions(record)}
                yield {"key": f"{columns[image]['key']}#{split}{number}", "split": split} | record | stored
