"""Record linkage: links to exemplars with a no-match threshold, and clusters by single linkage.

Which records are alike is said by a `Linker`. What has to be chosen, its weight and both thresholds, is chosen on
validation records (CLIPPINGS, Arora et al. 2023, released code: infer_clippings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from polymodal.evaluation.statistics import Score, group_numbers

INDEXED = 0.75  # fraction of the classes that have an exemplar in the index; records of the others have no match
CUTS = 40  # heights of the dendrogram that are tried as the threshold of clusters
CLASS_GROUPS = 20  # of the jackknife of clusters


@runtime_checkable
class Linker(Protocol):
    """How alike records are. weights: what it can be computed with, such as of images against texts."""

    @property
    def weights(self) -> Sequence[float]: ...

    def similarity(self, records: Any, weight: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the similarity of some records (rows) to others (columns)."""
        ...

    def distances(self, records: Any, weight: float) -> np.ndarray:
        """Return the distance of each pair of records, as `scipy.spatial.distance.pdist` has them."""
        ...


@dataclass(frozen=True)
class LinkedRecords:
    """Records of a split. values: what a linker compares. labels: number of the class of each.

    exemplars: a record of each indexed class, at random; queries: all other records, matched if their class has an
    exemplar.
    """

    values: Any
    labels: Int[np.ndarray, " records"]
    exemplars: Int[np.ndarray, " exemplars"]
    queries: Int[np.ndarray, " queries"]
    matched: Bool[np.ndarray, " queries"]

    @classmethod
    def of(cls, values: Any, names: Shaped[np.ndarray, " records"]) -> LinkedRecords:
        """names: class of each record."""
        rng = np.random.default_rng(0)
        _, labels = np.unique(names, return_inverse=True)
        order = rng.permutation(labels.max() + 1)
        indexed = order[: int(np.ceil(INDEXED * len(order)))]
        places = rng.permutation(len(labels))
        _, first = np.unique(labels[places], return_index=True)  # of each class
        exemplars = places[first][np.sort(indexed)]
        queries = np.setdiff1d(np.arange(len(labels)), exemplars)
        return cls(values, labels, exemplars, queries, np.isin(labels[queries], indexed))


class Links(NamedTuple):
    """The nearest exemplar of each query: its similarity, and the probability that it is of the query's class.

    Where several exemplars are equally near, one of them is taken at random.
    """

    similarity: Float[np.ndarray, " queries"]
    right: Float[np.ndarray, " queries"]

    @classmethod
    def of(cls, linker: Linker, records: LinkedRecords, weight: float) -> Links:
        queries, exemplars = records.queries, records.exemplars
        similarity = np.nan_to_num(linker.similarity(records.values, weight, queries, exemplars), nan=-np.inf)
        best = similarity.max(1)
        nearest = similarity >= best[:, None]
        right = nearest & (records.labels[queries][:, None] == records.labels[exemplars])
        return cls(best, right.sum(1) / nearest.sum(1))


@dataclass(frozen=True)
class Tuned:
    """What was chosen on validation records. threshold: similarity below which a query has no match. distance: up to
    which records are joined into clusters, with a weight of its own."""

    weight: float
    threshold: float
    cluster_weight: float
    distance: float

    @classmethod
    def on(cls, linker: Linker, records: LinkedRecords) -> Tuned:
        """Choose the weight by top-1, the threshold by the accuracy with no match, the others by the Rand index."""
        links = {weight: Links.of(linker, records, weight) for weight in linker.weights}
        weight = max(links, key=lambda one: links[one].right[records.matched].sum())
        clusters = {one: best_cut(linker.distances(records.values, one), records.labels) for one in linker.weights}
        cluster_weight = max(clusters, key=lambda one: clusters[one][0])
        threshold = no_match_threshold(links[weight], records.matched)
        return cls(weight, threshold, cluster_weight, clusters[cluster_weight][1])


def no_match_threshold(links: Links, matched: Bool[np.ndarray, " queries"]) -> float:
    """Return the similarity from which a link is made, by the number of queries that are then decided rightly."""
    order = np.argsort(-links.similarity, kind="stable")
    similarity = links.similarity[order]
    # Of the first n queries that are linked, and of the others, that have no match.
    linked = np.concatenate([[0.0], np.cumsum(links.right[order])])
    rejected = np.concatenate([np.cumsum((~matched[order])[::-1])[::-1], [0]])
    possible = np.concatenate([[True], similarity[1:] < similarity[:-1], [True]])
    count = int(np.argmax(np.where(possible, linked + rejected, -1.0)))
    ends = np.concatenate([[similarity[0] + 1.0], similarity, [similarity[-1] - 1.0]])
    return float((ends[count] + ends[count + 1]) / 2)


def single_linkage(distances: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, "merges 4"]:
    """Return the dendrogram, as scipy has it."""
    from scipy.cluster.hierarchy import linkage

    return linkage(distances, "single")


def cut(dendrogram: Float[np.ndarray, "merges 4"], distance: float) -> Int[np.ndarray, " records"]:
    """Return the cluster of each record: DBSCAN's with `min_samples=1` and this distance as eps."""
    from scipy.cluster.hierarchy import fcluster

    return fcluster(dendrogram, distance, "distance").astype(np.int64)


def best_cut(distances: Float[np.ndarray, " pairs"], labels: Int[np.ndarray, " records"]) -> tuple[float, float]:
    """Return the largest adjusted Rand index, and the distance that gives it, between two heights of the dendrogram."""
    from sklearn.metrics import adjusted_rand_score

    dendrogram = single_linkage(distances)
    heights = np.unique(dendrogram[:, 2])
    tried = np.unique(np.linspace(0, len(heights) - 1, CUTS).round().astype(int))
    ends = np.append(heights, heights[-1] + 1.0)
    cuts = [-1.0, *((ends[tried] + ends[tried + 1]) / 2).tolist()]
    return max((float(adjusted_rand_score(labels, cut(dendrogram, one))), one) for one in cuts)


def linking_scores(name: str, linker: Linker, records: LinkedRecords, tuned: Tuned) -> list[Score]:
    """Top-1 of the queries with a match, accuracy of all with the no-match threshold, ARI and the largest cluster.

    The unit is a class with all of its records.
    """
    links = Links.of(linker, records, tuned.weight)
    unit = records.labels[records.queries]
    accepted = links.similarity >= tuned.threshold
    decided = np.where(records.matched, links.right * accepted, ~accepted)
    no_match = float((~records.matched).mean())
    scores = [top_1(name, links, records)]
    scores.append(Score.per_cluster(f"{name}/accuracy_with_no_match", decided, unit, no_match))
    clusters = cut(single_linkage(linker.distances(records.values, tuned.cluster_weight)), tuned.distance)
    scores.append(adjusted_rand_index(f"{name}/ARI", records.labels, clusters))
    in_largest = (clusters == np.bincount(clusters).argmax()).astype(float)
    # Single linkage chains: one bad link merges clusters.
    scores.append(Score.per_cluster(f"{name}/largest_cluster", in_largest, records.labels, None, False))
    return scores


def top_1(name: str, links: Links, records: LinkedRecords) -> Score:
    """Accuracy of the nearest exemplar, over the queries with a match."""
    unit = records.labels[records.queries][records.matched]
    return Score.per_cluster(f"{name}/top-1", links.right[records.matched], unit, 1 / len(records.exemplars))


def adjusted_rand_index(name: str, labels: Int[np.ndarray, " records"], clusters: Int[np.ndarray, " records"]) -> Score:
    """Return the adjusted Rand index (Hubert and Arabie 1985), with a jackknife over groups of classes."""
    from sklearn.metrics import adjusted_rand_score

    group = group_numbers(int(labels.max()) + 1, CLASS_GROUPS)[labels]
    parts = [group != one for one in np.unique(group)]
    left_out = [adjusted_rand_score(labels[part], clusters[part]) for part in parts if part.any()]
    return Score.from_jackknife(name, float(adjusted_rand_score(labels, clusters)), np.array(left_out), 0.0)
