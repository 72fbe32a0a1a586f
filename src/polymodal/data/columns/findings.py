"""Findings of studies: labels of presence, a sentence for each, and whole reports, with a tokenizer of all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, Column
from polymodal.data.columns.text import TokenizedColumn, TokenizerSource
from polymodal.data.reports import TEMPLATES, absence, report_of
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Findings
from polymodal.modalities.text import Tokenizer, Tokens
from polymodal.rng import ExampleRNG


class FindingsColumn(TokenizedColumn):
    """Findings by index: the sentence of each that is present, empty for all others.

    names, regions: of the findings, once fitted. counts: of the training studies that have each.
    """

    reads = (Findings,)

    def __init__(
        self,
        source: TokenizerSource,
        tokenizer: Tokenizer | None = None,
        names: Sequence[str] = (),
        regions: Sequence[str] = (),
        counts: Sequence[int] = (),
    ):
        super().__init__(source, tokenizer)
        self.names, self.regions, self.counts = list(names), list(regions), list(counts)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> FindingsColumn:
        """Learn the tokenizer from sentences and templates. Raises UserError when no training study has a finding."""
        corpus = corpora[0]
        column = corpus.column_with(Findings)
        modality = corpus.columns[column]
        assert isinstance(modality, Findings)
        studies = []
        for raw in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
            with contextlib.suppress(UnreadableExample):
                studies.append(modality.decode(raw) if raw is not None else ())
        counts = np.array([[bool(one) for one in study] for study in studies if study], dtype=int).sum(0)
        if not counts.any():
            raise UserError(f"No training study of '{corpus.name}' has a finding to learn.{corpus.hint}")

        def texts() -> Iterator[str]:
            for study in studies:
                yield from (sentence for sentence in study if sentence)
                yield report_of(study)
            for template in TEMPLATES:
                yield from (template.format(name.lower()) for name in modality.names)

        tokenizer = self.source.tokenizer(texts())
        return FindingsColumn(self.source, tokenizer, modality.names, modality.regions, counts.tolist())

    def settings(self) -> dict[str, Any]:
        return {"names": self.names, "regions": self.regions, "counts": self.counts}

    def restore(self, settings: Mapping[str, Any], directory: Path) -> FindingsColumn:
        return FindingsColumn(self.source, self.source.load_tokenizer(directory), **settings)

    def load(self, corpus: Corpus, row: int) -> tuple[str, ...]:
        return corpus.value(row, corpus.column_with(Findings))

    def labels(self, studies: Sequence[Sequence[str]]) -> Float[Tensor, "batch findings"]:
        """Return 1 for findings that are present, else 0."""
        return torch.tensor([[float(bool(sentence)) for sentence in study] for study in studies])

    def sentences(self, studies: Sequence[Sequence[str]], example_rng: ExampleRNG | None = None) -> list[str]:
        """Return a sentence of each finding of each study, study by study: of absent ones a template at random.

        example_rng: None takes the first template.
        """
        rngs = [None] * len(studies) if example_rng is None else example_rng.generators
        return [
            sentence or absence(name, rng)
            for study, rng in zip(studies, rngs, strict=True)
            for name, sentence in zip(self.names, study, strict=True)
        ]

    def reports(self, studies: Sequence[Sequence[str]]) -> list[str]:
        """Return the report of each study: the sentences of what is present."""
        return [report_of(study) for study in studies]

    def __call__(self, studies: list[Sequence[str]]) -> Tokens:
        """Collate the sentences of all findings, study by study."""
        return self.tokenizer(self.sentences(studies))

    def texts(self, rows: Sequence[list[int]]) -> list[str]:
        """Decode token ids without special tokens."""
        return self.tokenizer.decode(Tokens.of([list(row) or [0] for row in rows]))


def sample_captions(present: Bool[np.ndarray, " rows"], count: int, rng: np.random.Generator) -> Int[np.ndarray, " _"]:
    """Sample rows with replacement from all that are present and as many others; all of one kind if need be.

    Sentences of absence would otherwise be nearly all that a captioner learns to write.
    """
    positive, negative = np.flatnonzero(present), np.flatnonzero(~present)
    if len(positive) and len(negative):
        positive = np.concatenate([positive, rng.choice(negative, len(positive))])
    return rng.choice(positive if len(positive) else negative, count)
