"""Semantic deduplication: connected components of near-duplicate embeddings, one of each of which is kept."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BLOCK = 2048  # rows that are compared with all others at once


def duplicate_components(
    embeddings: Float[np.ndarray, "rows dim"], threshold: float, within: Int[np.ndarray, " rows"] | None = None
) -> Int[np.ndarray, " rows"]:
    """Return the component of each row; rows of a cosine similarity of at least `threshold` are linked.

    embeddings: L2-normalized. within: cluster of each row, outside which nothing is compared (SemDeDup, Abbas et al.
    2023), as all pairs are too many for large sets. Links make chains: A ~ B ~ C are one component, although A and C
    may differ.
    """
    count = len(embeddings)
    groups = [np.arange(count)] if within is None else [np.flatnonzero(within == one) for one in np.unique(within)]
    first, second = [np.zeros(0, int)], [np.zeros(0, int)]
    for rows in groups:
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            # Later rows only: a link has no direction.
            left, right = np.nonzero(embeddings[some] @ embeddings[rows[start:]].T >= threshold)
            first.append(some[left])
            second.append(rows[start:][right])
    links = (np.concatenate(first), np.concatenate(second))
    graph = coo_array((np.ones(len(links[0]), bool), links), shape=(count, count))
    return connected_components(graph, directed=False)[1] if count else np.zeros(0, int)


def first_of_components(components: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Return for each row whether it is the first one of its component."""
    kept = np.zeros(len(components), dtype=bool)
    kept[np.unique(components, return_index=True)[1]] = True
    return kept


def near_any(
    embeddings: Float[np.ndarray, "rows dim"], others: Float[np.ndarray, "others dim"], threshold: float
) -> Bool[np.ndarray, " rows"]:
    """Return for each row whether another set has a row of a cosine similarity of at least `threshold`."""
    near = np.zeros(len(embeddings), dtype=bool)
    for start in range(0, len(embeddings) if len(others) else 0, BLOCK):
        near[start : start + BLOCK] = (embeddings[start : start + BLOCK] @ others.T >= threshold).any(axis=1)
    return near
