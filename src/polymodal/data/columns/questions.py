"""Questions about an example, with free-form answers or with answers as classes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, Column, PassThroughColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Questions

UNKNOWN_ANSWER = -100  # class of an answer outside the vocabulary; cross-entropy ignores it


class QuestionsColumn(PassThroughColumn):
    """Questions about an example with free-form answers."""

    reads = (Questions,)


@dataclass(frozen=True)
class AnswersColumn(PassThroughColumn):
    """Questions about an example; answers become classes of a closed vocabulary.

    max_answers: size of the vocabulary. answers: the vocabulary, most frequent first.
    """

    reads = (Questions,)
    max_answers: int
    answers: Sequence[str] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> AnswersColumn:
        """Take the most frequent answers of the training split as vocabulary; none without questions."""
        corpus = corpora[0]
        if not self.max_answers or not corpus.has_modality(Questions):
            return self
        column = corpus.column_with(Questions)
        stored = corpus.raw_values(corpus.sample("train", MAX_ROWS), column)
        counts: Counter[str] = Counter()
        for raw in stored:
            with contextlib.suppress(UnreadableExample):  # the loader counts and names them
                counts.update(question.answer for question in corpus.columns[column].decode(raw or []))
        return dataclasses.replace(self, answers=[answer for answer, _ in counts.most_common(self.max_answers)])

    def __call__(self, answers: list[str]) -> Int[Tensor, " batch"]:
        numbers = {name: number for number, name in enumerate(self.answers)}
        return torch.tensor([numbers.get(answer, UNKNOWN_ANSWER) for answer in answers])
