"""Two-level retrieval over clusters of embeddings, with the number of similarities that it computes, and flat search.

The nearest cluster center is searched first (inter-cluster), then the members of that cluster (intra-cluster), so that
a query costs K + N / K similarities on average in place of N (RealSyn, section 3.2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MINI_BATCH_ROWS = 20_000  # rows from which K-means takes mini-batches
BLOCK = 1024  # queries of a flat search at once
NOTHING = -1  # in the place of a row, where a cluster has fewer rows than are wanted


class Retrieved(NamedTuple):
    """Retrieved rows of each query.

    rows: the most similar first, -1 where there is none. similarities: cosine similarities, -inf for no row.
    computed: number of similarities that each query has cost.
    """

    rows: Int[np.ndarray, "queries k"]
    similarities: Float[np.ndarray, "queries k"]
    computed: Int[np.ndarray, " queries"]


def normalized(vectors: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """L2-normalize rows."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def cluster_number(count: int, wanted: int) -> int:
    """Return the number of clusters of so many rows: by default sqrt(count), which minimizes K + N / K."""
    return max(min(wanted or math.isqrt(count), count), 1)


def cluster_centers(
    embeddings: Float[np.ndarray, "rows dim"], num_clusters: int, seed: int
) -> Float[np.ndarray, "clusters dim"]:
    """Return L2-normalized centers of K-means; mini-batch K-means (Sculley 2010) for large sets."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    kind = KMeans if len(embeddings) < MINI_BATCH_ROWS else MiniBatchKMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters
        means = kind(num_clusters, random_state=seed, n_init=1).fit(embeddings.astype(np.float32))
    return normalized(means.cluster_centers_)


def nearest_center(
    embeddings: Float[np.ndarray, "rows dim"], centers: Float[np.ndarray, "clusters dim"]
) -> Int[np.ndarray, " rows"]:
    """Return argmax_c cos(e, centre_c) of each row."""
    blocks = [
        (embeddings[start : start + BLOCK] @ centers.T).argmax(axis=1) for start in range(0, len(embeddings), BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0, int)


@dataclass(frozen=True)
class ClusterIndex:
    """Clustered embeddings. members: rows of each cluster."""

    embeddings: Float[np.ndarray, "rows dim"]
    centers: Float[np.ndarray, "clusters dim"]
    members: Sequence[Int[np.ndarray, " some"]]

    @classmethod
    def fit(cls, embeddings: Float[np.ndarray, "rows dim"], num_clusters: int = 0, seed: int = 0) -> ClusterIndex:
        """Cluster L2-normalized embeddings. num_clusters: 0 takes the square root of their number."""
        centers = cluster_centers(embeddings, cluster_number(len(embeddings), num_clusters), seed)
        nearest = nearest_center(embeddings, centers)
        used = np.unique(nearest)
        return cls(embeddings, centers[used], [np.flatnonzero(nearest == cluster) for cluster in used])

    def search(self, queries: Float[np.ndarray, "queries dim"], k: int, num_probed: int = 1) -> Retrieved:
        """Return the k most similar rows among the nearest clusters. num_probed: clusters that are searched (1)."""
        similarities = queries @ self.centers.T
        # Inter-cluster: c* = argmax_c cos(e, centre_c).
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :num_probed]
        rows = np.full((len(queries), k), NOTHING)
        best = np.full((len(queries), k), -np.inf)
        computed = np.full(len(queries), len(self.centers))
        for clusters in np.unique(order, axis=0):
            same = np.flatnonzero((order == clusters).all(axis=1))
            members = np.sort(np.concatenate([self.members[cluster] for cluster in clusters]))
            # Intra-cluster: top-k of cos(e, s) over the sentences of c*.
            rows[same], best[same] = _top(queries[same], self.embeddings, members, k)
            computed[same] += len(members)
        return Retrieved(rows, best, computed)


def flat_search(
    queries: Float[np.ndarray, "queries dim"], embeddings: Float[np.ndarray, "rows dim"], k: int
) -> Retrieved:
    """Compare every query with every row."""
    members = np.arange(len(embeddings))
    parts = [
        _top(queries[start : start + BLOCK], embeddings, members, k) for start in range(0, max(len(queries), 1), BLOCK)
    ]
    rows, best = (np.concatenate(one) for one in zip(*parts, strict=True))
    return Retrieved(rows, best, np.full(len(queries), len(embeddings)))


def _top(queries: np.ndarray, embeddings: np.ndarray, members: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar members of each query, the first of equal ones first, padded with -1 and -inf."""
    similarities = queries @ embeddings[members].T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    rows, best = members[order], np.take_along_axis(similarities, order, axis=1)
    padding = ((0, 0), (0, k - order.shape[1]))
    return np.pad(rows, padding, constant_values=NOTHING), np.pad(best, padding, constant_values=-np.inf)


def retrieval_recall(retrieved: Retrieved, exact: Retrieved) -> float:
    """Return the fraction of the rows of an exact search that another search retrieves, too."""
    both = [
        len({*one.tolist()} & ({*other.tolist()} - {NOTHING}))
        for one, other in zip(retrieved.rows, exact.rows, strict=True)
    ]
    return sum(both) / max(int((exact.rows != NOTHING).sum()), 1)
