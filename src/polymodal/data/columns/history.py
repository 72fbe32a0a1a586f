"""Interaction histories of users with the items of a catalogue."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column
from polymodal.errors import UserError
from polymodal.modalities import History
from polymodal.modalities.history import Item

CATALOGUE = "catalogue.json"
WORD = r"[^\W_]{2,}"


class HistoryColumn(Column):
    """Multi-hot interaction vectors: 1 for each item that a user interacted with, else 0."""

    reads = (History,)

    def __init__(self, catalogue: Sequence[Item] = ()):
        self.catalogue = tuple(catalogue)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> HistoryColumn:
        """Raises UserError when the catalogue is empty."""
        corpus = corpora[0]
        histories = corpus.columns[corpus.column_with(History)]
        assert isinstance(histories, History)
        if not histories.catalogue:
            raise UserError(f"The corpus '{corpus.name}' has histories, but no catalogue of items.")
        return HistoryColumn(histories.catalogue)

    def load(self, corpus: Corpus, row: int) -> Int[np.ndarray, " items"]:
        return corpus.value(row, corpus.column_with(History))

    def __call__(self, histories: list[Int[np.ndarray, " _"]]) -> Float[Tensor, "batch items"]:
        """histories: item indices of each user."""
        chosen = torch.zeros(len(histories), len(self.catalogue))
        for row, items in zip(chosen, histories, strict=True):
            row[torch.as_tensor(np.asarray(items, np.int64))] = 1.0
        return chosen

    def save(self, directory: Path) -> None:
        (directory / CATALOGUE).write_text(json.dumps(self.catalogue, ensure_ascii=False), encoding="utf-8")

    def restore(self, settings: Mapping[str, Any], directory: Path) -> HistoryColumn:
        records = json.loads((directory / CATALOGUE).read_text(encoding="utf-8"))
        return HistoryColumn([Item(title, text, tuple(facts), tuple(labels)) for title, text, facts, labels in records])

    def words(self) -> tuple[list[str], Float[Tensor, "items words"]]:
        """Return the words that occur in at least two items, and the TF-IDF weights of the items, not normalized.

        Raises UserError when there is no such word.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(token_pattern=WORD, min_df=2, stop_words="english", norm=None)
        try:
            weights = vectoriser.fit_transform([item.text for item in self.catalogue])
        except ValueError as error:  # an empty vocabulary
            raise UserError(
                "No word occurs in the texts of two items of the catalogue; describe the items, or leave the text side "
                "out (--no-use-text)."
            ) from error
        return vectoriser.get_feature_names_out().tolist(), torch.from_numpy(weights.toarray()).float()

    def text_neighbors(self, count: int) -> Int[Tensor, "2 edges"]:
        """Return edges from each item to itself and its nearest items by text, `count` in all."""
        return _neighbors([item.text for item in self.catalogue], count, WORD)

    def fact_neighbors(self, count: int) -> Int[Tensor, "2 edges"]:
        """Return edges like `text_neighbors` by shared facts; an item without facts has only its self-loop."""
        return _neighbors(["\n".join(item.facts) for item in self.catalogue], count, r"[^\n]+")


def _neighbors(texts: list[str], count: int, token_pattern: str) -> Int[Tensor, "2 edges"]:
    """Nearest neighbors by the cosine of TF-IDF vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    items = np.arange(len(texts))
    loops = np.stack([items, items])
    if not any(re.search(token_pattern, text) for text in texts):
        return torch.from_numpy(loops)
    vectors = TfidfVectorizer(token_pattern=token_pattern, lowercase=True).fit_transform(texts)
    if count > 1 and len(texts) > 1:
        among = NearestNeighbors(n_neighbors=min(count, len(texts)), metric="cosine").fit(vectors)
        distance, neighbors = among.kneighbors(vectors)
        source = np.repeat(items, neighbors.shape[1])
        alike = (distance.ravel() < 1) & (neighbors.ravel() != source)
        others = np.stack([source[alike], neighbors.ravel()[alike]])
        rank = np.concatenate([np.arange(n) for n in np.bincount(others[0], minlength=len(texts))])
        loops = np.concatenate([loops, others[:, rank < count - 1]], axis=1)
    return torch.from_numpy(loops.astype(np.int64))
