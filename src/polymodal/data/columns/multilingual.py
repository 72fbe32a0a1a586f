"""Captions in many languages: those of one go with images, and texts of all of them are a stream of their own."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.languages import row_languages
from polymodal.corpora.mixture import Mixture
from polymodal.data.code_switching import (
    Dictionary,
    code_switch,
    code_switch_word,
    learn_dictionary,
    read_dictionary,
)
from polymodal.data.columns.column import MAX_ROWS, Column
from polymodal.data.columns.text import TextColumn, TokenizerSource
from polymodal.errors import UnreadableExample, UserError, unknown
from polymodal.modalities import Image, Text
from polymodal.modalities.text import UNKNOWN_LANGUAGE, Caption, Tokenizer
from polymodal.rng import ExampleRNG

TEXTS, DICTIONARY = "texts.json", "dictionary.json"  # of a run


class MultilingualColumn(TextColumn):
    """Captions with a tokenizer, texts of all languages without images, and a dictionary for code-switching.

    language: the source language, whose captions go with images. alpha: exponent of the smoothed frequency p^alpha by
    which languages of the text stream are sampled. dictionary: what `read_dictionary` reads; "" learns it from training
    rows with captions in several languages, and None is for a method that switches nothing.
    """

    def __init__(
        self,
        source: TokenizerSource,
        language: str = "en",
        alpha: float = 0.3,
        dictionary: str | None = "",
        tokenizer: Tokenizer | None = None,
        texts: Mapping[str, Sequence[str]] | None = None,
        words: Dictionary | None = None,
    ):
        """tokenizer, texts (by language) and words (the dictionary): fitted."""
        super().__init__(source, tokenizer)
        self.language, self.alpha, self.path = language, alpha, dictionary
        self.texts_by_language, self.dictionary = dict(texts or {}), dict(words or {})
        self.languages = sorted(self.texts_by_language)
        frequency = np.array([len(self.texts_by_language[name]) for name in self.languages], dtype=float)
        smoothed = (frequency / max(frequency.sum(), 1.0)) ** alpha
        self.probabilities = smoothed / max(smoothed.sum(), 1e-12)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> MultilingualColumn:
        """Collect the texts, learn or read the dictionary, and learn a tokenizer from texts as the stream samples them.

        Raises UserError for a source language of no caption, and where no dictionary can be learned.
        """
        rows = [captions for corpus in corpora if corpus.has_modality(Text) for captions in training_captions(corpus)]
        texts: dict[str, list[str]] = defaultdict(list)
        for caption in itertools.chain(*rows):
            texts[caption.language].append(caption.text)
        if self.language not in texts and UNKNOWN_LANGUAGE not in texts:
            raise unknown("caption in the language", self.language, texts)
        words: Dictionary = {}
        if self.path is not None:
            tagged = [
                [Caption(one.text, self.language) if one.language == UNKNOWN_LANGUAGE else one for one in captions]
                for captions in rows
            ]
            words = (
                read_dictionary(Path(self.path), self.language)
                if self.path
                else learn_dictionary(tagged, self.language)
            )
            if not words:
                raise no_dictionary(self.language)
        stream = MultilingualColumn(self.source, self.language, self.alpha, self.path, texts=texts)
        sampled = (stream.sample_text(rng) for rng in [np.random.default_rng(0)] for _ in range(len(rows)))
        paired = (caption.text for captions in rows for caption in self.of_source(captions))
        tokenizer = self.source.tokenizer(itertools.chain(sampled, paired))
        return MultilingualColumn(self.source, self.language, self.alpha, self.path, tokenizer, texts, words)

    def of_source(self, captions: Sequence[Caption]) -> list[Caption]:
        """Return the captions in the source language, as which those without a language count."""
        return [caption for caption in captions if caption.language in (self.language, UNKNOWN_LANGUAGE)]

    def in_languages(self, captions: Sequence[Caption], languages: Sequence[str]) -> list[Caption]:
        """Return the captions in these languages; those without a language count as of the source language."""
        unknown = (UNKNOWN_LANGUAGE,) if self.language in languages else ()
        return [caption for caption in captions if caption.language in (*languages, *unknown)]

    def switch(
        self,
        captions: Sequence[str],
        given: Sequence[Sequence[Caption]],
        rng: ExampleRNG,
        sent_ratio: float,
        word_ratio: float,
        one_word: bool = False,
    ) -> list[str]:
        """Code-switch captions, but those that are not in the source language: each word, or one word of a caption.

        given: the captions of each example, of which one was sampled. sent_ratio, word_ratio: see `code_switch`.
        """
        switched = []
        for caption, some, generator in zip(captions, given, rng.generators, strict=True):
            if caption not in [one.text for one in self.of_source(some)]:
                switched.append(caption)
            elif one_word:
                switched.append(code_switch_word(caption, self.dictionary, sent_ratio, generator))
            else:
                switched.append(code_switch(caption, self.dictionary, sent_ratio, word_ratio, generator))
        return switched

    def sample_text(self, rng: np.random.Generator) -> str:
        """Sample a text of the stream: a language by its smoothed frequency, then one of its texts uniformly."""
        cumulative = np.cumsum(self.probabilities).tolist()
        place = min(bisect.bisect(cumulative, rng.random()), len(cumulative) - 1)
        texts = self.texts_by_language[self.languages[place]]
        return texts[int(rng.integers(len(texts)))]

    def sample_stream(self, example_rng: ExampleRNG) -> list[str]:
        """Sample a text of the stream for each example of a batch, whatever the example is."""
        return [self.sample_text(rng) for rng in example_rng.generators]

    def settings(self) -> dict[str, Any]:
        return {"language": self.language, "alpha": self.alpha, "dictionary": self.path}

    def save(self, directory: Path) -> None:
        super().save(directory)
        for name, value in ((TEXTS, self.texts_by_language), (DICTIONARY, self.dictionary)):
            (directory / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    def restore(self, settings: Mapping[str, Any], directory: Path) -> MultilingualColumn:
        texts, words = (json.loads((directory / name).read_text(encoding="utf-8")) for name in (TEXTS, DICTIONARY))
        tokenizer = self.source.load_tokenizer(directory)
        return MultilingualColumn(self.source, **settings, tokenizer=tokenizer, texts=texts, words=words)


def training_captions(corpus: Corpus) -> Iterator[list[Caption]]:
    """The captions of training rows, of a sample of a large corpus."""
    column = corpus.column_with(Text)
    modality = corpus.columns[column]
    assert isinstance(modality, Text)
    for value in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
        with contextlib.suppress(UnreadableExample):
            yield modality.decode(value)


def check_translations(corpus: Corpus, language: str) -> None:
    """Raise UserError where no training row has captions in the language, or in none, and in another one."""
    sources = {language, UNKNOWN_LANGUAGE}
    spoken = ({*some} for some in row_languages(corpus, corpus.rows("train")))
    if not any(some & sources and some - sources for some in spoken):
        raise no_dictionary(language)


def no_dictionary(language: str) -> UserError:
    return UserError(
        f"No dictionary can be learned, as no training row has captions in '{language}' and in another language; give "
        "one with --dictionary, or switch nothing with --sent-ratio 0."
    )


def rows_with_captions(corpus: Corpus, languages: Sequence[str]) -> np.ndarray:
    """Return the training rows with an image and a caption in one of the languages. Raises UserError without any."""
    rows, image = corpus.rows("train"), corpus.column_with(Image)
    spoken = row_languages(corpus, rows)
    rows = rows[np.array([not {*languages}.isdisjoint(some) for some in spoken], dtype=bool)]
    if isinstance(corpus, Mixture):
        rows = rows[np.array([corpus.raw(row, image) is not None for row in rows.tolist()], dtype=bool)]
    else:
        rows = rows[corpus.has(image)[rows]]
    if not len(rows):
        wanted = " or ".join(language for language in languages if language != UNKNOWN_LANGUAGE)
        there = sorted({language for some in spoken for language in some})
        raise UserError(
            f"No training row of '{corpus.name}' has an image with a caption in {wanted}; its captions are in "
            f"{', '.join(there) or 'no language'}.{corpus.hint}"
        )
    return rows
