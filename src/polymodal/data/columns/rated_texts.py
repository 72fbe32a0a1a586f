"""Texts of rated images: descriptions that a score or a language model generated, and purified comments."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, Column
from polymodal.data.columns.scores import ScoresColumn
from polymodal.data.columns.text import TextColumn, TokenizerSource
from polymodal.data.rated_texts import (
    purified,
    texts_of_score,
    tf_idf_similarity,
    words_of_text,
)
from polymodal.errors import UnreadableExample, unknown
from polymodal.modalities import Table, Text
from polymodal.modalities.text import Caption, Tokenizer

COMMENTS = ("comments", "comment")  # names of columns with comments
PREFERRED = ("description", "descriptions")  # of columns with generated descriptions, before any other
Similarity = Callable[[str, Sequence[str]], np.ndarray]
CommentSelection = Literal["purified", "random", "none"]


class RatedTextColumn(TextColumn):
    """Descriptions of rated images, in the language of the corpus: of a column of texts, else made of the scores.

    names: of the columns of texts; by default `description`, else the first that has no comments. extra: texts that
    the tokenizer is learned from, too, such as prompts.
    """

    reads: ClassVar[tuple[type, ...]] = (Text, Table)

    def __init__(
        self,
        source: TokenizerSource,
        names: Sequence[str] = (),
        extra: Sequence[str] = (),
        scores: ScoresColumn | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        super().__init__(source, tokenizer)
        self.names, self.extra, self.scores = tuple(names), tuple(extra), scores

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> RatedTextColumn:
        """Learn a tokenizer from all texts of the corpus, so that it does not depend on the columns that are used.

        Raises UserError for a name of no column of texts.
        """
        corpus, scores = corpora[0], fitted["scores"]
        assert isinstance(scores, ScoresColumn)
        texts = [name for name, modality in corpus.columns.items() if isinstance(modality, Text)]
        for name in self.names:
            if name not in texts:
                raise unknown("column of texts", name, texts)
        others = [name for name in texts if name.lower() not in COMMENTS]
        preferred = [name for name in others if name.lower() in PREFERRED]
        names = self.names or tuple((preferred or others)[:1])
        column = RatedTextColumn(self.source, names, self.extra, scores)
        column.tokenizer = self.source.tokenizer(column._texts(corpus))
        return column

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        """Return all descriptions of a row. Raises UnreadableExample where there is neither text nor score."""
        captions = [caption for name in self.names for caption in _captions(corpus, row, name)]
        if not captions and self.scores is not None:
            values = self.scores.load(corpus, row)
            named = [(name, value) for name, value in zip(self.scores.names, values, strict=True) if value == value]
            captions = [Caption(text) for name, value in named for text in texts_of_score(name, float(value))]
        if not captions:
            raise UnreadableExample("there is neither a text nor a score")
        return captions

    def sample_text(self, descriptions: list[Caption], comments: Sequence[str], rng: np.random.Generator) -> str:
        """Sample one of the comments with probability 1/2, if there are any, else a description."""
        if comments and rng.random() < 0.5:
            return comments[int(rng.integers(len(comments)))]
        return self.sample_caption(descriptions, rng)

    def settings(self) -> dict[str, Any]:
        scores = None if self.scores is None else self.scores.settings()
        return {"names": list(self.names), "extra": list(self.extra), "scores": scores}

    def restore(self, settings: Mapping[str, Any], directory: Any) -> RatedTextColumn:
        scores = None if settings["scores"] is None else ScoresColumn(**settings["scores"])
        tokenizer = self.source.load_tokenizer(directory)
        return RatedTextColumn(self.source, settings["names"], settings["extra"], scores, tokenizer)

    def _texts(self, corpus: Corpus) -> Iterator[str]:
        yield from self.extra
        every = [name for name, modality in corpus.columns.items() if isinstance(modality, Text)]
        for row in corpus.sample("train", MAX_ROWS // 10).tolist():
            with contextlib.suppress(UnreadableExample):
                yield from (caption.text for name in every for caption in _captions(corpus, row, name))
                yield from (caption.text for caption in self.load(corpus, row))


class CommentsColumn(Column):
    """Comments of an image that purification keeps; none where a row has no comments.

    selection: the `count` with the best ranks of relevance and length, as many at random, or none. similarity: from a
    generated text and comments to their relevance, such as by a pretrained text encoder; by default of TF-IDF vectors.
    """

    reads: ClassVar[tuple[type, ...]] = (Text,)

    def __init__(
        self,
        selection: CommentSelection = "purified",
        count: int = 4,
        similarity: Similarity | None = None,
        idf: Mapping[str, float] | None = None,
        texts: RatedTextColumn | None = None,
    ):
        self.selection, self.count, self.similarity = selection, count, similarity
        self.idf, self.texts = idf or {}, texts

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> CommentsColumn:
        """Learn the inverse document frequencies of words, of a text of each training row."""
        corpus, texts = corpora[0], fitted["text"]
        assert isinstance(texts, RatedTextColumn)
        counts, rows = Counter[str](), corpus.sample("train", MAX_ROWS // 10).tolist()
        column = CommentsColumn(self.selection, self.count, self.similarity, {}, texts)
        if column._column(corpus) is not None and self.similarity is None:
            for row in rows:
                with contextlib.suppress(UnreadableExample):
                    written = [*column._comments(corpus, row), *(one.text for one in texts.load(corpus, row))]
                    counts.update({word for text in written for word in words_of_text(text)})
        column.idf = {word: math.log((1 + len(rows)) / (1 + count)) + 1 for word, count in counts.items()}
        return column

    def load(self, corpus: Corpus, row: int) -> list[str]:
        comments = self._comments(corpus, row)
        if self.selection == "none" or not comments:
            return []
        if self.selection == "random":
            return [comments[n] for n in np.random.default_rng(row).permutation(len(comments))[: self.count]]
        assert self.texts is not None
        reference = self.texts.load(corpus, row)[0].text
        if self.similarity is not None:
            relevance = self.similarity(reference, comments)
        else:
            relevance = tf_idf_similarity(reference, comments, self.idf)
        return purified(comments, relevance, self.count)

    def __call__(self, values: list[list[str]]) -> list[list[str]]:
        return values

    def settings(self) -> dict[str, Any]:
        assert self.texts is not None
        return {"idf": dict(self.idf), "texts": self.texts.settings()}

    def restore(self, settings: Mapping[str, Any], directory: Any) -> CommentsColumn:
        source = _NoTokenizer()
        texts = RatedTextColumn(source).restore(settings["texts"], directory)
        return CommentsColumn(self.selection, self.count, self.similarity, settings["idf"], texts)

    def _column(self, corpus: Corpus) -> str | None:
        """Return the column with comments: of its usual name, and not one of the descriptions."""
        taken = () if self.texts is None else self.texts.names
        names = [name for name, modality in corpus.columns.items() if isinstance(modality, Text)]
        return next((name for name in names if name.lower() in COMMENTS and name not in taken), None)

    def _comments(self, corpus: Corpus, row: int) -> list[str]:
        name = self._column(corpus)
        return [] if name is None else [caption.text for caption in _captions(corpus, row, name)]


class _NoTokenizer:
    """Texts that are read and not tokenized."""

    def tokenizer(self, texts: Any) -> Any:
        return None

    def load_tokenizer(self, directory: Any) -> Any:
        return None


def _captions(corpus: Corpus, row: int, name: str) -> list[Caption]:
    """Return the captions of a column in its main language; none where the row, or the corpus, has none."""
    modality = corpus.columns.get(name)
    if not isinstance(modality, Text) or corpus.raw(row, name) is None:
        return []
    return modality.in_main_language(corpus.value(row, name))
