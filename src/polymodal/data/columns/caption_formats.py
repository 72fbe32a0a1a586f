"""Captions in several formats: tags of one column, or a column for each, such as `alt_text`, `ssc` and `dsc`."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.caption_mixing import ALT_TEXT, CAPTION_FORMATS, by_format, caption_format, format_tag
from polymodal.data.columns.column import MAX_ROWS, Column
from polymodal.data.columns.text import TextColumn, TokenizerSource
from polymodal.errors import UnreadableExample
from polymodal.modalities import Text
from polymodal.modalities.text import Caption, Tokenizer

UNLIMITED = 100_000  # tokens
MAX_MEASURED = 2000  # captions of a format
NOTABLE = 0.01  # truncated fraction of a format that a warning is worth


class CaptionFormatsColumn(TextColumn):
    """All captions with their formats. truncated: fraction of each format beyond the context length, once fitted.

    used: formats whose truncation is worth a warning; by default all.
    """

    def __init__(
        self,
        source: TokenizerSource,
        tokenizer: Tokenizer | None = None,
        language_shares: Mapping[str, float] | None = None,
        truncated: Mapping[str, float] | None = None,
        used: Sequence[str] = CAPTION_FORMATS,
    ):
        super().__init__(source, tokenizer, language_shares)
        self.truncated, self.used = dict(truncated or {}), tuple(used)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> CaptionFormatsColumn:
        """Learn one tokenizer from all formats, whatever their ratios, so that arms of a comparison have the same.

        Warns of formats that the context length truncates.
        """
        texts: dict[str, list[str]] = defaultdict(list)
        rng, sampler = np.random.default_rng(0), TextColumn(self.source).text
        for number, corpus in enumerate(corpora):
            modality = corpus.columns[corpus.column_with(Text)]
            assert isinstance(modality, Text)
            sampler = modality if number == 0 else sampler
            for row in corpus.sample("train", MAX_ROWS).tolist():
                with contextlib.suppress(UnreadableExample):
                    for name, captions in by_format(self.load(corpus, row)).items():
                        texts[name] += [modality.choose(captions, rng) for _ in captions]
        tokenizer = self.source.tokenizer(text for some in texts.values() for text in some)
        truncated = {name: truncated_fraction(some[:MAX_MEASURED], tokenizer) for name, some in texts.items()}
        notable = [
            f"{fraction:.0%} of {name}"
            for name, fraction in truncated.items()
            if fraction > NOTABLE and name in self.used
        ]
        if notable:
            warnings.warn(
                f"Captions are truncated to {tokenizer.context_length} tokens: {', '.join(notable)}.", stacklevel=2
            )
        return CaptionFormatsColumn(self.source, tokenizer, sampler.language_shares, truncated, self.used)

    def restore(self, settings: Mapping[str, Any], directory: Path) -> CaptionFormatsColumn:
        return CaptionFormatsColumn(self.source, self.source.load_tokenizer(directory), **settings, used=self.used)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "truncated": self.truncated}

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        return captions_in_formats(corpus, row)


def captions_in_formats(corpus: Corpus, row: int) -> list[Caption]:
    """Return the captions of the corpus's text column, and those of columns that are named after a format.

    Such a column may be one of plain strings, as tables of users have it. Raises UnreadableExample without any.
    """
    first, table = corpus.column_with(Text), getattr(corpus, "table", None)
    stored = {*corpus.columns, *(table.column_names if table is not None else ())}
    named = [name for name in CAPTION_FORMATS if name in stored and name != first]
    if not named:
        return tagged(corpus.value(row, first), first)
    captions: list[Caption] = []
    for name in (first, *named):
        with contextlib.suppress(UnreadableExample):
            if (value := corpus.raw(row, name)) is not None:
                modality = corpus.columns.get(name)
                captions += tagged((modality if isinstance(modality, Text) else Text()).decode(value), name)
    if not captions:
        raise UnreadableExample("the caption is empty")
    return captions


def tagged(captions: Iterable[Caption], column: str) -> list[Caption]:
    """Return captions of a column with the format that its name says; those of other columns have theirs."""
    if column not in CAPTION_FORMATS or column == ALT_TEXT:
        return [*captions]
    return [
        caption
        if caption_format(caption.language) != ALT_TEXT
        else Caption(caption.text, format_tag(column, caption.language))
        for caption in captions
    ]


def truncated_fraction(texts: Sequence[str], tokenizer: Tokenizer) -> float:
    """Return the fraction of texts that have more tokens than the tokenizer's context length, special ones included."""
    lengths = token_lengths(texts, tokenizer)
    return float(np.mean(lengths > tokenizer.context_length)) if len(lengths) else 0.0


def token_lengths(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Return the number of tokens of each text, special ones included, without truncation."""
    if not texts:
        return np.zeros(0, dtype=np.int64)
    whole = copy.copy(tokenizer)
    whole.context_length = UNLIMITED
    return whole([*texts]).lengths.numpy()


def formats_of_rows(corpus: Corpus, rows: np.ndarray) -> list[set[str]]:
    """Return the formats of the captions of each row; none for a row that cannot be read."""
    formats = []
    for row in rows.tolist():
        try:
            formats.append({*by_format(captions_in_formats(corpus, row))})
        except UnreadableExample:
            formats.append(set())
    return formats
