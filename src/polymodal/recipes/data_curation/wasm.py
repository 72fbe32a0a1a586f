"""Wasm: curation of Arabic web pages into interleaved image-text documents, with quality filters tuned for Arabic.

The steps are those of OBELICS: a page is simplified, read as texts and images in order, filtered text by text
(node-level), deduplicated, and filtered as a whole (document-level). Short phrases, repeated formulas and vowel signs
are usual in Arabic, so that thresholds made for English lose good text; they are chosen anew, tests by English word
lists are off, and every paragraph must be Arabic. A list or table is judged as one paragraph. What is left is written
as Markdown, images in their place (section 3). Left out: the selection of pages from Common Crawl's index and reading
WARC files (pages come as HTML files, Parquet or JSON lines); audio and video; Needleman-Wunsch, for which the release
has a Levenshtein ratio, too.

Terms: node-level filter = filter_nodes, document-level filter = filter_documents, deduplication = drop_repeated,
thresholds = QualityFilters, perplexity = NGramModel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
from rapidfuzz import fuzz, process

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.curation.quality import Judge, Knowledge, QualityFilters, clean_text, printable, unused_filters
from polymodal.curation.steps import CurationStep, FilterResult, Rejection
from polymodal.curation.web import PageBlock
from polymodal.types import Paper

paper = Paper(
    slug="wasm",
    title="Wasm: A Pipeline for Constructing Structured Arabic Interleaved Multimodal Corpora",
    year=2025,
    arxiv="2511.07080",
    modalities=("image", "text"),
    code="misraj-ai/wasm@516ffa5b785e77dc893e5c08b6341eb72afb6427",
)
RUNS = ("item", "row")  # kinds of blocks that make one paragraph together: lists and tables
CHUNK = 256  # texts that are compared with all before them at once

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
    """Return for each text whether one before it is as similar as that: an edit similarity from 0 to 100."""
    repeated = [False] * len(texts)
    for start in range(0, len(texts) if similarity <= 100 else 0, CHUNK):
        chunk = texts[start : start + CHUNK]
        before = texts[: start + len(chunk)]
        similar = process.cdist(chunk, before, scorer=fuzz.ratio, score_cutoff=similarity, dtype=np.float32)
        for index, row in enumerate(similar, start):
            repeated[index] = bool((row[:index] >= similarity).any())
    return repeated


@dataclass(frozen=True)
class Recipe:
    language: str = "ar"
    """Language of the texts, by ISO 639-1."""
    paragraph_filters: QualityFilters = PARAGRAPH
    document_filters: QualityFilters = DOCUMENT
    dedup_similarity: NonNegativeFloat = 80.0
    """Edit similarity, 0 to 100, at which the later of two texts of a page is dropped; above 100, none is."""
    layout: Literal["markdown", "flat"] = "markdown"
    """Markdown with images in their place, or plain text behind all images."""
    max_characters: NonNegativeInt = 0
    """Characters of a document, of which an image takes a quarter; longer pages become several, cut between blocks; 0
    keeps them whole."""
    perplexity_quantile: UnitInterval = 0.98
    """Quantile of the perplexity of good paragraphs, and of documents of them, that is the threshold, in place of those
    that belong to the paper's language model; 0 takes the thresholds as they are."""
    num_stop_words: PositiveInt = 100
    """Number of most frequent words of good texts that count as stop words."""

    @classmethod
    def paper(cls) -> Recipe:
        """The limits of the released configuration as they are, perplexity's too."""
        return cls(perplexity_quantile=0.0)

    def fit(self, good: Iterable[str], flagged: Iterable[str] = ()) -> Knowledge:
        """What is known of the language. good: texts of it; without any, perplexity and word lists ask for nothing."""
        return Knowledge.of(self.language, good, flagged, stop=self.num_stop_words)

    def unused_filters(self, knowledge: Knowledge) -> list[str]:
        """Return the filters that ask for nothing without good texts or flagged words."""
        return list(
            dict.fromkeys(
                unused_filters(self.paragraph_filters, knowledge) + unused_filters(self.document_filters, knowledge)
            )
        )

    def steps(self, known: Knowledge) -> dict[str, CurationStep]:
        """What happens to the blocks of a page, one after the other."""
        return {
            "paragraph": partial(filter_nodes, judge=Judge(self._calibrated(self.paragraph_filters, known), known)),
            "repeated": partial(drop_repeated, similarity=self.dedup_similarity),
            "document": partial(
                filter_documents, judge=Judge(self._calibrated(self.document_filters, known, True), known)
            ),
        }

    def _calibrated(self, limits: QualityFilters, known: Knowledge, documents: bool = False) -> QualityFilters:
        if not self.perplexity_quantile or limits.perplexity == math.inf:
            return limits
        return replace(limits, perplexity=known.perplexity_of(self.perplexity_quantile, documents))

    def documents(self, blocks: list[PageBlock]) -> list[list[PageBlock]]:
        """The blocks of a page as they are to be trained on."""
        parts = [list(part) for _, part in groupby(blocks, lambda block: block.document)]
        if self.max_characters:
            parts = [piece for part in parts for piece in cut(part, self.max_characters)]
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


def paragraphs_of(blocks: list[PageBlock]) -> list[list[PageBlock]]:
    """Group blocks that are judged together: the items of a list and the rows of a table; others are alone."""
    groups: list[list[PageBlock]] = []
    for block in blocks:
        before = groups[-1][-1] if groups else None
        if before is not None and block.kind in RUNS and (before.kind, before.document) == (block.kind, block.document):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def filter_nodes(blocks: list[PageBlock], judge: Judge) -> FilterResult:
    """Keep the texts that pass the filters, without unprintable characters; images stay.

    Of a list that passes as a whole, items in another language are dropped, such as those that nobody has translated.
    """
    kept: list[PageBlock] = []
    dropped: list[Rejection] = []
    for group in paragraphs_of(blocks):
        if group[0].image:
            kept += group
            continue
        texts = [block.text if block.kind == "code" else clean_text(block.text) for block in group]
        reason = judge.why_not("\n".join(texts))
        for block, text in zip(group, texts, strict=True):
            foreign = block.kind == "item" and len(group) > 1 and judge.is_foreign(text)
            if why := reason or ("language" if foreign else None):
                dropped.append(Rejection(why, block.text))
            else:
                kept.append(block._replace(text=text, markdown=printable(block.markdown)))
    return FilterResult(kept, dropped)


def drop_repeated(blocks: list[PageBlock], similarity: float) -> FilterResult:
    """Drop texts, lists and tables that are almost the same as one before; images stay."""
    groups = paragraphs_of(blocks)
    numbers = [number for number, group in enumerate(groups) if not group[0].image]
    texts = ["\n".join(block.text for block in groups[number]) for number in numbers]
    repeated = {number for number, again in zip(numbers, almost_the_same(texts, similarity), strict=True) if again}
    return FilterResult(
        [block for number, group in enumerate(groups) if number not in repeated for block in group],
        [Rejection("repeated", block.text) for number in sorted(repeated) for block in groups[number]],
    )


def filter_documents(blocks: list[PageBlock], judge: Judge) -> FilterResult:
    """Keep the documents of a page whose texts together pass the filters."""
    result = FilterResult([], [])
    for _, part in groupby(blocks, lambda block: block.document):
        document = list(part)
        text = "\n\n".join(block.text for block in document if not block.image)
        if (reason := judge.why_not(text) if text else "no_text") is None:
            result.kept.extend(document)
        else:
            result.dropped.append(Rejection(reason, text))
    return result
