"""Filtered ranking of links in a knowledge graph: MRR and Hits@k (Bordes et al. 2013, section 4.2)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from polymodal.evaluation.statistics import Score

HITS = (1, 3, 10)


def filtered_ranks(
    scores: Float[np.ndarray, "queries candidates"],
    target: Int[np.ndarray, " queries"],
    left_out: Bool[np.ndarray, "queries candidates"],
) -> tuple[Float[np.ndarray, " queries"], Int[np.ndarray, " queries"]]:
    """Return the rank of each target, from 1, and the number of candidates that it was ranked among.

    left_out: candidates that are none, such as other true tails and nodes of other types; the target stays. Ties are
    at the mean of their ranks (the realistic rank of pykeen), so that a constant score is at chance. A target whose
    score is NaN is last.
    """
    rows = np.arange(len(target))
    open_scores = np.where(np.isnan(scores), -np.inf, scores)
    of_target = open_scores[rows, target][:, None]
    there = ~left_out
    there[rows, target] = True
    better = ((open_scores > of_target) & there).sum(1)
    equal = ((open_scores == of_target) & there).sum(1)
    ranks = better + (equal + 1) / 2
    ranks = np.where(np.isnan(scores[rows, target]), there.sum(1), ranks)
    return ranks.astype(float), there.sum(1)


def ranking_metrics(
    name: str,
    ranks: Float[np.ndarray, " queries"],
    candidates: Int[np.ndarray, " queries"],
    unit: Int[np.ndarray, " queries"],
) -> list[Score]:
    """Return MRR and Hits@k with the values of a random order.

    unit: number of the linked pair of nodes that a query is of, such as of a triplet and its inverse.
    """
    harmonic = np.cumsum(1 / np.arange(1, candidates.max(initial=1) + 1))
    chance = float(np.mean(harmonic[candidates - 1] / candidates))  # about (ln n) / n
    scores = [Score.per_cluster(f"{name}/MRR", 1 / ranks, unit, chance)]
    for k in HITS:
        expected = float(np.mean(np.minimum(k / candidates, 1)))
        scores.append(Score.per_cluster(f"{name}/Hits@{k}", (ranks <= k).astype(float), unit, expected))
    return scores
