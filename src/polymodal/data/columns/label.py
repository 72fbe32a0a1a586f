"""Class labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.errors import UserError, unknown
from polymodal.modalities import Category


@dataclass(frozen=True)
class LabelColumn(BaseColumn):
    """Class labels, -1 for none.

    names: of the classes, by index. column: with the label; by default the label of the corpus. may_lack: whether an
    example without a label is read.
    """

    reads = (Category,)
    names: Sequence[str] = ()
    column: str = ""
    may_lack: bool = False

    def available(self, corpora: Sequence[Corpus]) -> bool:
        return isinstance(corpora[0].columns.get(self.column), Category) if self.column else bool(corpora[0].label)

    def check(self, corpus: Corpus) -> None:
        if self.column:
            names = [name for name, modality in corpus.columns.items() if isinstance(modality, Category)]
            raise unknown("category column", self.column, names)
        raise UserError(f"The corpus '{corpus.name}' has no label to learn to classify by.{corpus.hint}")

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> LabelColumn:
        corpus = corpora[0]
        modality = corpus.columns.get(self.column or corpus.label or "")
        if not isinstance(modality, Category):
            self.check(corpus)
        assert isinstance(modality, Category)
        return replace(self, names=list(modality.names))

    def load(self, corpus: Corpus, row: int) -> int:
        column = self.column or corpus.label
        assert column is not None
        return -1 if self.may_lack and corpus.raw(row, column) is None else corpus.value(row, column)

    def __call__(self, labels: list[int]) -> Int[Tensor, " batch"]:
        return torch.tensor(labels)


def label_of(processor: Any) -> LabelColumn | None:
    """Return the label column of a processor; None without one."""
    return getattr(processor, "label", None)
