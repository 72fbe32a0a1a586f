"""Wasm: Arabic web pages to interleaved documents that keep their structure, with limits of quality made for Arabic.

The steps are OBELICS': a page is simplified, read as texts and pictures in order, filtered text by text, then as a
whole. Short phrases, repeated formulas and vowel signs are usual in Arabic, so that limits made for English lose good
text; they are chosen anew, tests by English word lists are off, and every paragraph must be Arabic. Of texts of a page
that are almost the same, the first stays. What is left is written as Markdown, pictures in their place (section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from rapidfuzz import fuzz, process

from polymodal.curation.quality import Judge, Knowledge, Limits, cleaned, printed
from polymodal.curation.web import Block
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.ranges import NotNegative, Share, Whole
from polymodal.recipes.any_to_any import moma
from polymodal.types import Budget, CuratedTrainingClaim, CurationClaim, CurationStep, Dropped, Paper, Sifted

paper = Paper(
    slug="wasm",
    title="Wasm: A Pipeline for Constructing Structured Arabic Interleaved Multimodal Corpora",
    year=2025,
    arxiv="2511.07080",
    modalities=("image", "text"),
)

PARAGRAPH = Limits(
    least_words=3,
    character_repetition=0.2,
    word_repetition=0.25,
    run_of_words=4,
    special_characters=0.25,
    flagged_words=0.01,
    language=0.5,
    perplexity=2200,
)
DOCUMENT = Limits(least_words=8, special_characters=0.23, flagged_words=0.01, language=0.85, perplexity=1900)


def almost_the_same(texts: list[str], alike: float) -> list[bool]:
    """For each text, whether one before it that stays is as similar as that: an edit similarity from 0 to 100."""
    if len(texts) < 2 or alike > 100:
        return [False] * len(texts)
    similar = process.cdist(texts, texts, scorer=fuzz.ratio, score_cutoff=alike, dtype=np.float32) >= alike
    repeated: list[bool] = []
    for number, row in enumerate(similar):
        repeated.append(any(row[before] and not repeated[before] for before in range(number)))
    return repeated


@dataclass(frozen=True)
class Recipe:
    language: str = "ar"
    """Of the texts that are wanted, as ISO 639-1 names it."""
    paragraph: Limits = PARAGRAPH
    document: Limits = DOCUMENT
    alike: NotNegative = 80.0
    """Edit similarity, from 0 to 100, at which the later of two texts of a page goes; above 100, none does."""
    layout: Literal["markdown", "flat"] = "markdown"
    """Markdown with pictures in their place, or plain text behind all pictures."""
    longest: Whole = 0
    """Characters of a document, of which a picture takes a quarter; longer pages become several, cut between blocks; 0
    keeps them whole."""
    calibrated: Share = 0.98
    """Share of good paragraphs whose perplexity is allowed, in place of limits that belong to the paper's language
    model; 0 takes the limits as they are."""

    @classmethod
    def paper(cls) -> Recipe:
        """The limits of the released configuration as they are, perplexity's too."""
        return cls(calibrated=0.0)

    def learn(self, good: Iterable[str], flagged: Iterable[str] = ()) -> Knowledge:
        """What is known of the language. good: texts of it; without any, perplexity and word lists ask for nothing."""
        return Knowledge.of(self.language, good, flagged)

    def steps(self, known: Knowledge) -> dict[str, CurationStep]:
        """What happens to the blocks of a page, one after the other."""
        paragraphs, documents = (
            Judge(self._limited(limits, known), known) for limits in (self.paragraph, self.document)
        )
        return {
            "paragraph": partial(sift_texts, judge=paragraphs),
            "repeated": partial(drop_repeated, alike=self.alike),
            "document": partial(sift_page, judge=documents),
        }

    def _limited(self, limits: Limits, known: Knowledge) -> Limits:
        if not self.calibrated or limits.perplexity == math.inf:
            return limits
        return replace(limits, perplexity=known.perplexity_of(self.calibrated))

    def documents(self, blocks: list[Block]) -> list[list[Block]]:
        """The blocks of a page as they are to be trained on."""
        parts = cut(blocks, self.longest) if self.longest else [blocks]
        return parts if self.layout == "markdown" else [flattened(part) for part in parts]


def cut(blocks: list[Block], longest: int) -> list[list[Block]]:
    """In their order, as many to a part as fit: a text takes its characters, a picture a quarter of the whole."""
    parts: list[list[Block]] = []
    room = 0
    for block in blocks:
        size = longest // 4 if block.image else len(block.text)
        if not parts or size > room:
            parts.append([])
            room = longest
        parts[-1].append(block)
        room -= size
    return parts


def flattened(blocks: list[Block]) -> list[Block]:
    """All pictures, and then all texts without marks."""
    plain = [block._replace(kind="paragraph", markdown=block.text) for block in blocks if not block.image]
    return [block for block in blocks if block.image] + plain


def sift_texts(blocks: list[Block], judge: Judge) -> Sifted:
    """Texts without what is not printed, and only those that keep the limits; pictures stay."""
    kept: list[Block] = []
    dropped: list[Dropped] = []
    for block in blocks:
        if block.image:
            kept.append(block)
            continue
        text = block.text if block.kind == "code" else cleaned(block.text)
        if (reason := judge.why_not(text)) is None:
            kept.append(block._replace(text=text, markdown=printed(block.markdown)))
        else:
            dropped.append(Dropped(reason, block.text))
    return Sifted(kept, dropped)


def drop_repeated(blocks: list[Block], alike: float) -> Sifted:
    """Without texts that are almost the same as one before; pictures stay."""
    places = [number for number, block in enumerate(blocks) if not block.image]
    repeated = almost_the_same([blocks[number].text for number in places], alike)
    gone = {number for number, again in zip(places, repeated, strict=True) if again}
    return Sifted(
        [block for number, block in enumerate(blocks) if number not in gone],
        [Dropped("repeated", blocks[number].text) for number in sorted(gone)],
    )


def sift_page(blocks: list[Block], judge: Judge) -> Sifted:
    """All blocks, or none where the texts together do not keep the limits."""
    if not blocks:
        return Sifted([], [])
    text = "\n\n".join(block.text for block in blocks if not block.image)
    reason = judge.why_not(text) if text else "no_text"
    return Sifted(blocks, []) if reason is None else Sifted([], [Dropped(reason, text)])


# As OBELICS has them for English, but for the share of common words: its list is of a size that no corpus here gives.
OBELICS_PARAGRAPH = Limits(
    least_words=4,
    most_words=1000,
    character_repetition=0.1,
    word_repetition=0.1,
    special_characters=0.3,
    stop_words=0.3,
    flagged_words=0.01,
    punctuation=0.001,
)
OBELICS_DOCUMENT = Limits(
    least_words=10,
    most_words=2000,
    character_repetition=0.1,
    word_repetition=0.2,
    special_characters=0.275,
    stop_words=0.35,
    flagged_words=0.01,
    punctuation=0.03,
    language=0.8,
    perplexity=1500,
)
_obelics = Recipe(paragraph=OBELICS_PARAGRAPH, document=OBELICS_DOCUMENT, alike=101)
claim = CurationClaim(
    sentence="Limits made for Arabic keep more good Arabic paragraphs than those that OBELICS made for English, and no "
    "more noise.",
    baseline=_obelics,
    treatment=Recipe(),
    further={
        "OBELICS without stop words": replace(
            _obelics,
            paragraph=replace(OBELICS_PARAGRAPH, stop_words=0.0),
            document=replace(OBELICS_DOCUMENT, stop_words=0.0),
        ),
        "Wasm without perplexity": Recipe(paragraph=replace(PARAGRAPH, perplexity=math.inf)),
    },
    corpus="manuals",
    language="ar",
    budget=Budget(examples=40),
    seeds=3,
    metrics=(
        "good/kept",
        "good/kept_after_paragraph",
        "noise/dropped",
        *(
            f"noise/{kind}/dropped"
            for kind in ("mojibake", "navigation", "repeated", "shuffled", "spam", "symbols", "wrong_language")
        ),
    ),
    paper_figures="thresholds are compared in words only",
)

_english = Recipe(language="en", longest=1000)
structure = CuratedTrainingClaim(
    sentence="A model that learns from documents which keep their structure, pictures in their place, foretells the "
    "words of new ones better than one that learns from the same documents as plain text behind their pictures.",
    baseline=replace(_english, layout="flat"),
    treatment=_english,
    model=moma.Recipe(
        batch_size=16,
        learning_rate=2.5e-3,
        language_model=LanguageModelConfig(vocabulary=1000, context=640, groups=4, tied=False),
        text_experts=1,
        image_experts=1,
        shares=(0.5, 0.5, 0.0),
    ),
    corpus="manuals",
    languages=("en",),
    budget=Budget(steps=1200),
    seeds=3,
    metrics=("test/words/bits_a_byte", "test/words_and_marks/bits_a_byte", "test/paragraph_of_picture/accuracy"),
    paper_figures="no model is trained",
)
