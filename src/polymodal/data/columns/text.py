"""Captions as tokens, and where a column's tokenizer comes from."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, Column
from polymodal.errors import UnreadableExample
from polymodal.modalities import Text
from polymodal.modalities.text import Caption, TextTokenizer, Tokenizer, Tokens
from polymodal.rng import ExampleRNG

DRAWS = 8  # captions sampled of each row that a tokenizer is learned from


@runtime_checkable
class TokenizerSource(Protocol):
    """An object that learns or loads a tokenizer, such as the configuration of a text encoder."""

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer: ...

    def load_tokenizer(self, directory: Path) -> Tokenizer: ...


@dataclass(frozen=True)
class LearnedTokenizer:
    """A source that always learns its tokenizer from the corpus.

    characters: tokens are single characters. keep_case: of byte-level BPE, which otherwise reads lower case.
    """

    vocab_size: int
    context_length: int
    characters: bool = False
    keep_case: bool = False

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        if self.keep_case:
            return TextTokenizer.train(texts, self.vocab_size, self.context_length, keep_case=True)
        learn = TextTokenizer.characters if self.characters else TextTokenizer.train
        return learn(texts, self.vocab_size, self.context_length)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        return TextTokenizer.load(directory, self.context_length)


class TokenizedColumn(Column):
    """A column with a tokenizer."""

    def __init__(self, source: TokenizerSource, tokenizer: Tokenizer | None = None):
        self.source = source
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def save(self, directory: Path) -> None:
        self.tokenizer.save(directory)


class TextColumn(TokenizedColumn):
    """Captions. `load` reads all captions of an example; strings are collated into tokens."""

    reads: ClassVar[tuple[type, ...]] = (Text,)

    def __init__(
        self,
        source: TokenizerSource,
        tokenizer: Tokenizer | None = None,
        language_shares: Mapping[str, float] | None = None,
    ):
        """tokenizer: the fitted one. language_shares: sampling probability of each language."""
        super().__init__(source, tokenizer)
        self.text = Text(dict(language_shares or {}))

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> TextColumn:
        """Learn a tokenizer from captions of the training splits; language probabilities are those of the first."""
        texts, shares = [], []
        for corpus in [corpus for corpus in corpora if corpus.has_modality(Text)] or corpora:
            column = corpus.column_with(Text)
            modality = corpus.columns[column]
            assert isinstance(modality, Text)
            shares.append(modality.language_shares)
            texts.append(_sample_captions(corpus.raw_values(corpus.sample("train", MAX_ROWS), column), modality))
        return type(self)(self.source, self.source.tokenizer(itertools.chain(*texts)), shares[0])

    def restore(self, settings: Mapping[str, Any], directory: Path) -> TextColumn:
        return type(self)(self.source, self.source.load_tokenizer(directory), **settings)

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        return corpus.value(row, corpus.column_with(Text))

    def __call__(self, texts: list[str]) -> Tokens:
        return self.tokenizer(texts)

    def sample_caption(self, captions: list[Caption], rng: np.random.Generator) -> str:
        """Sample a caption, its language by `language_shares`."""
        return self.text.choose(captions, rng)

    def sample_captions(
        self, captions: Sequence[list[Caption]], example_rng: ExampleRNG, optional: bool = False
    ) -> list[str]:
        """Sample a caption of each example.

        optional: an example without captions has the empty text; without, UserError is raised for it.
        """
        each = zip(captions, example_rng.generators, strict=True)
        return ["" if optional and not some else self.sample_caption(some, rng) for some, rng in each]

    def settings(self) -> dict[str, Any]:
        return {"language_shares": dict(self.text.language_shares)}

    def texts(self, rows: Sequence[list[int]]) -> list[str]:
        """Decode token ids without special tokens."""
        return self.tokenizer.decode(Tokens.of([list(row) or [0] for row in rows]))


class ShuffledTextColumn(TextColumn):
    """Captions of other training examples, always the same, as a control: images and texts as before, unaligned.

    Examples of other splits keep their own.
    """

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        rows = corpus.rows("train")
        if getattr(self, "_rows", None) is not rows:
            order = np.random.default_rng(0).permutation(rows)
            self._rows, self._other = rows, dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        return super().load(corpus, self._other.get(row, row))


def _sample_captions(rows: list[Any], modality: Text) -> Iterator[str]:
    """Sample captions as training does, so that rare languages do not take the vocabulary of frequent ones."""
    rng = np.random.default_rng(0)
    for row in rows:
        with contextlib.suppress(UnreadableExample):
            captions = modality.decode(row)
            yield from (modality.choose(captions, rng) for _ in captions[:DRAWS])
