"""A knowledge base: distinct snippets of text, and the k most similar ones to a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymodal.curation.hierarchical_retrieval import NOTHING, flat_search, normalized
from polymodal.errors import UserError

Embed = Callable[[Sequence[str]], Any]
"""From texts to an array of their embeddings."""


@dataclass(frozen=True)
class KnowledgeBase:
    """Snippets with their embeddings, L2-normalized. embed: of queries, in the same space."""

    snippets: Sequence[str]
    vectors: Any
    embed: Embed

    @classmethod
    def fit(cls, texts: Sequence[str], embed: Embed | None = None) -> KnowledgeBase:
        """Index the distinct texts. embed: a dense retriever's, such as that of a run; by default TF-IDF.

        Raises UserError without any text.
        """
        snippets = [*{" ".join(text.lower().split()): text.strip() for text in texts if text.strip()}.values()]
        if not snippets:
            raise UserError("The knowledge base has no text; give --knowledge a file with one snippet per line.")
        if embed is not None:
            return cls(snippets, normalized(np.asarray(embed(snippets))), embed)
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+", stop_words="english", norm="l2")
        try:
            return cls(snippets, vectorizer.fit_transform(snippets), vectorizer.transform)
        except ValueError as error:  # an empty vocabulary
            raise UserError("The snippets of the knowledge base have no words; give others.") from error

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        """Return at most k distinct snippets of each query, the most similar first; without any word in common, none
        by TF-IDF."""
        if not queries:
            return []
        vectors = self.embed(queries)
        if not hasattr(vectors, "toarray"):
            rows = flat_search(normalized(np.asarray(vectors)), self.vectors, k).rows
            return [[self.snippets[row] for row in one.tolist() if row != NOTHING] for one in rows]
        similarities = (vectors @ self.vectors.T).tocsr()
        results = []
        for start, stop in zip(similarities.indptr, similarities.indptr[1:], strict=False):
            rows, values = similarities.indices[start:stop], similarities.data[start:stop]
            order = np.lexsort((rows, -values))[:k]  # the first of equal ones first
            results.append([self.snippets[row] for row in rows[order].tolist()])
        return results
