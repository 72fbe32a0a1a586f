"""Every caption of an example, from all text columns of a corpus."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column
from polymodal.data.columns.questions import QuestionsColumn
from polymodal.data.columns.text import TextColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Conversations, Interleaved, Preferences, Questions, Text
from polymodal.modalities.text import Caption, Tokens, bos_eos


class CaptionsColumn(TextColumn):
    """All captions of an example in the main language, from every text column of the corpus."""

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> CaptionsColumn:
        """Learn a tokenizer from captions, documents, questions and answers of all corpora."""
        texts = (text for corpus in corpora for text in _texts(corpus))
        return CaptionsColumn(self.source, self.source.tokenizer(texts))

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        return all_captions(corpus, row)

    def texts(self, rows: Sequence[list[int]]) -> list[str]:
        """Decode token ids without special tokens."""
        _, end = bos_eos(self.tokenizer)
        return [text.strip() for text in self.tokenizer.decode(Tokens.of([row or [end] for row in rows]))]


def all_captions(corpus: Corpus, row: int) -> list[Caption]:
    """Return the captions of a row, in the main language of each text column. Raises UnreadableExample without any."""
    captions: list[Caption] = []
    for name, modality in corpus.columns.items():
        if isinstance(modality, Text) and corpus.raw(row, name) is not None:
            captions += modality.in_main_language(corpus.value(row, name))
    if not captions:
        raise UnreadableExample("there is no text")
    return captions


def _texts(corpus: Corpus, max_rows: int = 20_000) -> Iterator[str]:
    """Captions, questions and answers of training examples."""
    kinds = {type(modality) for modality in corpus.columns.values()}
    asks = Questions in kinds
    for row in corpus.sample("train", max_rows).tolist():
        with contextlib.suppress(UnreadableExample):
            if Interleaved in kinds:
                yield from (
                    piece["text"] for piece in corpus.raw(row, corpus.column_with(Interleaved)) if piece["text"]
                )
            for name, modality in corpus.columns.items():
                if isinstance(modality, Conversations) and (stored := corpus.raw(row, name)) is not None:
                    yield from modality.texts(stored)
                if isinstance(modality, Preferences) and (stored := corpus.raw(row, name)) is not None:
                    yield from (text for pair in modality.decode(stored) for text in pair[:3])
            if asks:
                yield from (text for question in QuestionsColumn().load(corpus, row) for text in question[:2])
            if Text in kinds:
                yield from (caption.text for caption in all_captions(corpus, row))
