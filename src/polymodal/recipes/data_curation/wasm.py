"""Wasm: curation of Arabic web pages into interleaved image-text documents, with quality filters tuned for Arabic.

The steps are OBELICS': a page is simplified, read as texts and images in order, filtered text by text, then as a
whole. Short phrases, repeated formulas and vowel signs are usual in Arabic, so that limits made for English lose good
text; they are chosen anew, tests by English word lists are off, and every paragraph must be Arabic. Of texts of a page
that are almost the same, the first stays. What is left is written as Markdown, images in their place (section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from rapidfuzz import fuzz, process

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, UnitInterval
from polymodal.curation.quality import Judge, Knowledge, QualityFilters, clean_text, printable
from polymodal.curation.steps import CurationStep, FilterResult, Rejection
from polymodal.curation.web import PageBlock
from polymodal.types import Paper

paper = Paper(
    slug="wasm",
    title="Wasm: A Pipeline for Constructing Structured Arabic Interleaved Multimodal Corpora",
    year=2025,
    arxiv="2511.07080",
    modalities=("image", "text"),
)

PARAGRAPH = QualityFilters(
    min_words=3,
    character_repetition=0.2,
    word_repetition=0.25,
    ngram_size=4,
    special_characters=0.25,
    flagged_words=0.01,
    language=0.5,
    perplexity=2200,
)
DOCUMENT = QualityFilters(min_words=8, special_characters=0.23, flagged_words=0.01, language=0.85, perplexity=1900)


def almost_the_same(texts: list[str], similarity: float) -> list[bool]:
    """For each text, whether one before it that stays is as similar as that: an edit similarity from 0 to 100."""
    if len(texts) < 2 or similarity > 100:
        return [False] * len(texts)
    similar = process.cdist(texts, texts, scorer=fuzz.ratio, score_cutoff=similarity, dtype=np.float32) >= similarity
    repeated: list[bool] = []
    for number, row in enumerate(similar):
        repeated.append(any(row[before] and not repeated[before] for before in range(number)))
    return repeated


@dataclass(frozen=True)
class Recipe:
    language: str = "ar"
    """Of the texts that are wanted, as ISO 639-1 names it."""
    paragraph_filters: QualityFilters = PARAGRAPH
    document_filters: QualityFilters = DOCUMENT
    dedup_similarity: NonNegativeFloat = 80.0
    """Edit similarity, from 0 to 100, at which the later of two texts of a page goes; above 100, none does."""
    layout: Literal["markdown", "flat"] = "markdown"
    """Markdown with images in their place, or plain text behind all images."""
    max_characters: NonNegativeInt = 0
    """Characters of a document, of which an image takes a quarter; longer pages become several, cut between blocks; 0
    keeps them whole."""
    perplexity_quantile: UnitInterval = 0.98
    """Share of good paragraphs whose perplexity is allowed, in place of limits that belong to the paper's language
    model; 0 takes the limits as they are."""

    @classmethod
    def paper(cls) -> Recipe:
        """The limits of the released configuration as they are, perplexity's too."""
        return cls(perplexity_quantile=0.0)

    def fit(self, good: Iterable[str], flagged: Iterable[str] = ()) -> Knowledge:
        """What is known of the language. good: texts of it; without any, perplexity and word lists ask for nothing."""
        return Knowledge.of(self.language, good, flagged)

    def steps(self, known: Knowledge) -> dict[str, CurationStep]:
        """What happens to the blocks of a page, one after the other."""
        paragraphs, documents = (
            Judge(self._limited(limits, known), known) for limits in (self.paragraph_filters, self.document_filters)
        )
        return {
            "paragraph": partial(sift_texts, judge=paragraphs),
            "repeated": partial(drop_repeated, similarity=self.dedup_similarity),
            "document": partial(sift_page, judge=documents),
        }

    def _limited(self, limits: QualityFilters, known: Knowledge) -> QualityFilters:
        if not self.perplexity_quantile or limits.perplexity == math.inf:
            return limits
        return replace(limits, perplexity=known.perplexity_of(self.perplexity_quantile))

    def documents(self, blocks: list[PageBlock]) -> list[list[PageBlock]]:
        """The blocks of a page as they are to be trained on."""
        parts = cut(blocks, self.max_characters) if self.max_characters else [blocks]
        return parts if self.layout == "markdown" else [flattened(part) for part in parts]


def cut(blocks: list[PageBlock], max_characters: int) -> list[list[PageBlock]]:
    """In their order, as many to a part as fit: a text takes its characters, an image a quarter of the whole."""
    parts: list[list[PageBlock]] = []
    room = 0
    for block in blocks:
        size = max_characters // 4 if block.image else len(block.text)
        if not parts or size > room:
            parts.append([])
            room = max_characters
        parts[-1].append(block)
        room -= size
    return parts


def flattened(blocks: list[PageBlock]) -> list[PageBlock]:
    """All images, and then all texts without marks."""
    plain = [block._replace(kind="paragraph", markdown=block.text) for block in blocks if not block.image]
    return [block for block in blocks if block.image] + plain


def sift_texts(blocks: list[PageBlock], judge: Judge) -> FilterResult:
    """Texts without what is not printed, and only those that keep the limits; images stay."""
    kept: list[PageBlock] = []
    dropped: list[Rejection] = []
    for block in blocks:
        if block.image:
            kept.append(block)
            continue
        text = block.text if block.kind == "code" else clean_text(block.text)
        if (reason := judge.why_not(text)) is None:
            kept.append(block._replace(text=text, markdown=printable(block.markdown)))
        else:
            dropped.append(Rejection(reason, block.text))
    return FilterResult(kept, dropped)


def drop_repeated(blocks: list[PageBlock], similarity: float) -> FilterResult:
    """Without texts that are almost the same as one before; images stay."""
    places = [number for number, block in enumerate(blocks) if not block.image]
    repeated = almost_the_same([blocks[number].text for number in places], similarity)
    gone = {number for number, again in zip(places, repeated, strict=True) if again}
    return FilterResult(
        [block for number, block in enumerate(blocks) if number not in gone],
        [Rejection("repeated", blocks[number].text) for number in sorted(gone)],
    )


def sift_page(blocks: list[PageBlock], judge: Judge) -> FilterResult:
    """All blocks, or none where the texts together do not keep the limits."""
    if not blocks:
        return FilterResult([], [])
    text = "\n\n".join(block.text for block in blocks if not block.image)
    reason = judge.why_not(text) if text else "no_text"
    return FilterResult(blocks, []) if reason is None else FilterResult([], [Rejection(reason, text)])
