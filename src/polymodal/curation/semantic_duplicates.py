"""Semantic deduplication: connected components of near-duplicate embeddings, one of each of which is kept."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from polymodal.curation.hierarchical_retrieval import cluster_centers, cluster_number, nearest_center, normalized

BLOCK = 512  # rows that are compared with all others at once
SAME_AS_MEAN = 1e-5  # distance of a vector of length 1 to the mean that rounding explains
COMPARED = 20_000  # rows from which near-duplicates are looked for within clusters alone


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
            later = rows[start:]  # a link has no direction
            left, right = np.nonzero(embeddings[later[:BLOCK]] @ embeddings[later].T >= threshold)
            # A link of each row to the first of its component is enough; all of them can be as many as all pairs.
            components = _components(left, right, len(later))
            first.append(later[np.unique(components, return_index=True)[1]][components])
            second.append(later)
    return _components(np.concatenate(first), np.concatenate(second), count)


def _components(first: Int[np.ndarray, " links"], second: Int[np.ndarray, " links"], count: int) -> np.ndarray:
    """Return the component of each of `count` rows, numbered from 0."""
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
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


def unique_rows(
    embeddings: Float[np.ndarray, "rows dim"], threshold: float, seed: int = 0
) -> Bool[np.ndarray, " rows"]:
    """Return for each row whether it is the first of its near-duplicates; of many rows, those of its cluster."""
    within = None
    if len(embeddings) > COMPARED:
        centers = cluster_centers(embeddings, cluster_number(len(embeddings), 0), seed)
        within = nearest_center(embeddings, centers)
    return first_of_components(duplicate_components(embeddings, threshold, within))


def centered(embeddings: Float[np.ndarray, "rows dim"], *others: np.ndarray) -> list[np.ndarray]:
    """Return rows, and those of other arrays, without the mean of the former, L2-normalized.

    Rows that are the mean stay as they are, such as those of an image that all others repeat; so do all, where there
    are fewer than two.
    """
    if len(embeddings) < 2:
        return [embeddings, *others]
    mean = embeddings.mean(axis=0)
    parts = [(some, some - mean) for some in (embeddings, *others)]
    return [
        normalized(np.where(np.linalg.norm(moved, axis=1, keepdims=True) > SAME_AS_MEAN, moved, some))
        for some, moved in parts
    ]
