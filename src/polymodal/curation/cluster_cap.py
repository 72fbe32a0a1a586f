"""Balance by clusters: at most so many samples of each (RealSyn, section 3.4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def cluster_capped(clusters: Int[np.ndarray, " rows"], cap: int, seed: int) -> Int[np.ndarray, " kept"]:
    """Return sorted rows, at most `cap` of each cluster, sampled at random; smaller clusters are kept whole."""
    order = np.random.default_rng(seed).permutation(len(clusters))
    shuffled = clusters[order]
    by_cluster = np.argsort(shuffled, kind="stable")
    ordered = shuffled[by_cluster]
    # Place of each row within its cluster, in random order.
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, int)
    place = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    return np.sort(order[by_cluster[place < cap]])
