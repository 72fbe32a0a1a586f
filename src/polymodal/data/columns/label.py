"""Class labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.errors import UserError
from polymodal.modalities import Category


@dataclass(frozen=True)
class LabelColumn(BaseColumn):
    """Class labels. names: of the classes, by index."""

    reads = (Category,)
    names: Sequence[str] = ()

    def available(self, corpora: Sequence[Corpus]) -> bool:
        return bool(corpora[0].label)

    def check(self, corpus: Corpus) -> None:
        raise UserError(f"The corpus '{corpus.name}' has no label to learn to classify by.{corpus.hint}")

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> LabelColumn:
        corpus = corpora[0]
        modality = corpus.columns[corpus.label] if corpus.label is not None else None
        if not isinstance(modality, Category):
            self.check(corpus)
        assert isinstance(modality, Category)
        return LabelColumn(list(modality.names))

    def load(self, corpus: Corpus, row: int) -> int:
        assert corpus.label is not None
        return corpus.value(row, corpus.label)

    def __call__(self, labels: list[int]) -> Int[Tensor, " batch"]:
        return torch.tensor(labels)


def label_of(processor: Any) -> LabelColumn | None:
    """Return the label column of a processor; None without one."""
    return getattr(processor, "label", None)
