"""Words of a page with their bounding boxes, and the form field of each word."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, Column
from polymodal.data.columns.text import TokenizedColumn, TokenizerSource
from polymodal.errors import UnreadableExample
from polymodal.modalities import Words
from polymodal.modalities.document import NO_SEGMENT, OTHER, PageTokens, Word, invalid_box, page_tokens
from polymodal.modalities.text import Tokenizer
from polymodal.rng import ExampleRNG

NO_FIELD = -100  # class of tokens without a field label; cross-entropy ignores it


class WordsColumn(TokenizedColumn):
    """The words of a page in reading order."""

    reads = (Words,)

    def __init__(
        self,
        source: TokenizerSource,
        segment_level_layout: bool = True,
        tokenizer: Tokenizer | None = None,
        fields: Sequence[str] = (),
    ):
        """segment_level_layout: each word has the box of its segment. fields: names of the field classes."""
        super().__init__(source, tokenizer)
        self.fields = tuple(fields)
        self.segment_level_layout = segment_level_layout

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> WordsColumn:
        """Learn a tokenizer from the words of the training pages."""
        corpus = corpora[0]
        column = corpus.column_with(Words)
        modality = corpus.columns[column]
        assert isinstance(modality, Words)
        pages = []
        for raw in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
            with contextlib.suppress(UnreadableExample):
                pages.append(" ".join(word.text for word in modality.decode(raw)))
        tokenizer = self.source.tokenizer(pages)
        return WordsColumn(self.source, self.segment_level_layout, tokenizer, modality.fields)

    def restore(self, settings: Mapping[str, Any], directory: Path) -> WordsColumn:
        return WordsColumn(self.source, tokenizer=self.source.load_tokenizer(directory), **settings)

    def load(self, corpus: Corpus, row: int) -> list[Word]:
        """Load the words of a page. Raises UnreadableExample for an invalid box."""
        words = corpus.value(row, corpus.column_with(Words))
        if fault := invalid_box(words):
            raise UnreadableExample(fault)
        return in_segment_boxes(words) if self.segment_level_layout else words

    def __call__(self, pages: list[list[Word]]) -> PageTokens:
        if self.segment_level_layout:  # changes nothing in loaded pages; users give words with their own boxes
            pages = [in_segment_boxes(page) for page in pages]
        return page_tokens(pages, self.tokenizer)

    def windows(self, words: list[Word]) -> list[list[Word]]:
        """Split a page into windows of words that fit the tokenizer's context; at least one window."""
        room = self.tokenizer.context_length - 2
        pieces = (self.tokenizer([word.text for word in words]).lengths - 2).tolist() if words else []
        runs: list[list[Word]] = [[]]
        taken = 0
        for word, count in zip(words, pieces, strict=True):
            if runs[-1] and taken + count > room:
                runs.append([])
                taken = 0
            runs[-1].append(word)
            taken += count
        return runs

    def field_numbers(self, pages: list[list[Word]], tokens: PageTokens) -> Int[Tensor, "batch length"]:
        """Return the field class of each word at its first token, `NO_FIELD` at all other tokens."""
        numbers = {name: number for number, name in enumerate(self.fields)}
        labels = torch.full_like(tokens.word, NO_FIELD)
        for row, (page, first) in enumerate(zip(pages, first_pieces(tokens), strict=True)):
            of_words = torch.tensor([numbers.get(word.field, numbers.get(OTHER, 0)) for word in page] or [0])
            labels[row, first] = of_words[tokens.word[row, first]]
        return labels

    def settings(self) -> dict[str, Any]:
        return {"fields": list(self.fields), "segment_level_layout": self.segment_level_layout}


def in_segment_boxes(words: list[Word]) -> list[Word]:
    """Give each word the bounding box of its segment, as OCR engines return for lines.

    Words without a segment keep their own.
    """
    around: dict[int, tuple[int, int, int, int]] = {}
    for word in words:
        left, top, right, bottom = around.get(word.segment, word.box)
        box = word.box
        around[word.segment] = (min(left, box[0]), min(top, box[1]), max(right, box[2]), max(bottom, box[3]))
    return [word if word.segment == NO_SEGMENT else word._replace(box=around[word.segment]) for word in words]


def random_windows(pages: list[list[Word]], max_words: int, example_rng: ExampleRNG) -> list[list[Word]]:
    """Sample a window of at most `max_words` consecutive words of each page."""
    starts = [
        int(rng.integers(max(len(page) - max_words, 0) + 1))
        for page, rng in zip(pages, example_rng.generators, strict=True)
    ]
    return [page[start : start + max_words] for page, start in zip(pages, starts, strict=True)]


def first_pieces(tokens: PageTokens) -> Bool[Tensor, "batch length"]:
    """Return True at the first token of every word."""
    before = F.pad(tokens.word[:, :-1], (1, 0), value=-1)
    return (tokens.word >= 0) & (tokens.word != before)
