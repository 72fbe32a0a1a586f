"""Retrieval between modalities: ranks, the metrics made of them, and their chance levels.

A query may have several right answers (all captions of an image); its rank is that of the first one found. A candidate
that is exactly as similar as the right one counts as ranked before it, and so does one whose similarity is NaN; a right
one of similarity NaN comes last. So neither a collapsed embedding nor a broken one scores anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.evaluation.statistics import MetricKind, Score, means_by_cluster

RECALLS = (1, 5, 10)
METRICS = {"R@*": MetricKind(), "MRR": MetricKind(), "median_rank": MetricKind("rank", higher_is_better=False)}
_BLOCK = 4_194_304  # similarities in memory at once


def ranks(
    queries: Float[Tensor, "queries dim"], candidates: Float[Tensor, "candidates dim"], relevant: Sequence[np.ndarray]
) -> Int[np.ndarray, " queries"]:
    """The rank, from 1, of each query's best relevant candidate. relevant: for each query, candidate numbers."""
    best_ranks = np.empty(len(queries), dtype=np.int64)
    rows = max(1, _BLOCK // len(candidates))
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ candidates.T
        right = torch.zeros_like(similarity, dtype=torch.bool)
        for row, numbers in zip(right, relevant[start : start + rows], strict=True):
            row[torch.from_numpy(numbers)] = True
        best = similarity.masked_fill(~right | similarity.isnan(), -torch.inf).amax(1, keepdim=True)
        best_ranks[start : start + rows] = 1 + (~(similarity < best) & ~right).sum(1).numpy()
    return best_ranks


def top(
    queries: Float[Tensor, "queries dim"], candidates: Float[Tensor, "candidates dim"], count: int
) -> Int[np.ndarray, "queries count"]:
    """The numbers of the most similar candidates, best first."""
    return (queries @ candidates.T).nan_to_num(nan=-torch.inf).topk(min(count, len(candidates))).indices.numpy()


def retrieval_scores(
    name: str,
    best_ranks: Int[np.ndarray, " queries"],
    relevant: Sequence[np.ndarray],
    candidates: int,
    unit: np.ndarray,
) -> list[Score]:
    """R@1, R@5, R@10, MRR and the median rank. unit: for each query, the number of the unit that it belongs to.

    Units count alike, however many queries they have, and so they do in chance.
    """
    counts = np.array([len(right) for right in relevant])
    _, places, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    weights = 1 / sizes[places]
    scores = [
        Score(
            f"{name}/R@{k}", means_by_cluster(best_ranks <= k, unit)[0], chance_recall(counts, candidates, k, weights)
        )
        for k in RECALLS
    ]
    chance = chance_reciprocal_rank(counts, candidates, weights)
    scores.append(Score(f"{name}/MRR", means_by_cluster(1 / best_ranks, unit)[0], chance))
    median = _medians_by_unit(best_ranks, unit)
    chance = chance_median_rank(counts, candidates, weights)
    scores.append(Score(f"{name}/median_rank", median, chance, higher_is_better=False, statistic="median"))
    return scores


def _medians_by_unit(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    _, starts, counts = np.unique(np.sort(unit), return_index=True, return_counts=True)
    ordered = values[np.lexsort((values, unit))]
    return (ordered[starts + (counts - 1) // 2] + ordered[starts + counts // 2]) / 2


def _survival(relevant: int, candidates: int) -> np.ndarray:
    """P(the first of `relevant` right ones among `candidates` in random order stands after place r), r = 0 ... ."""
    places = np.arange(candidates)
    factors = np.clip(candidates - relevant - places, 0, None) / (candidates - places)
    return np.concatenate([[1.0], np.cumprod(factors)])


def _mean_survival(counts: np.ndarray, candidates: int, weights: np.ndarray | None) -> np.ndarray:
    values, places = np.unique(counts, return_inverse=True)
    times = np.bincount(places, weights)
    return sum(_survival(int(m), candidates) * t for m, t in zip(values, times, strict=True)) / times.sum()


def chance_recall(counts: np.ndarray, candidates: int, k: int, weights: np.ndarray | None = None) -> float:
    """The expected R@k of a random order. counts: relevant candidates of each query; weights: of the queries."""
    return float(1 - _mean_survival(counts, candidates, weights)[min(k, candidates)])


def chance_reciprocal_rank(counts: np.ndarray, candidates: int, weights: np.ndarray | None = None) -> float:
    """The expected MRR of a random order."""
    at_rank = -np.diff(_mean_survival(counts, candidates, weights))
    return float((at_rank / np.arange(1, candidates + 1)).sum())


def chance_median_rank(counts: np.ndarray, candidates: int, weights: np.ndarray | None = None) -> float:
    """The median rank of a random order."""
    return float(np.argmax(_mean_survival(counts, candidates, weights) <= 0.5))
