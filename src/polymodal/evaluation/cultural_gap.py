"""Zero-shot accuracy over concepts of a culture, and how far it is below that over equally many general concepts.

A value of a concept is the mean over its images, and a score the mean over concepts (macro average), which are the
units of its interval. Accuracy among fewer classes than there are is the mean over all choices of so many of them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from polymodal.evaluation.statistics import Score, means_by_cluster

GENERAL = "general"  # the culture of concepts that are specific to none
KS = (1, 5)


def top_k_among(ranks: Int[np.ndarray, " images"], classes: int, chosen: int, k: int) -> Float[np.ndarray, " images"]:
    """Return for each image the probability that its class is among the k best of a random choice of classes.

    ranks: of its class among all, from 1. chosen: number of classes of a choice, of which its own is always one. Of the
    r - 1 better classes, at most k - 1 may be among the others: a hypergeometric distribution.
    """
    from scipy.stats import hypergeom

    return np.asarray(hypergeom.cdf(k - 1, classes - 1, ranks - 1, chosen - 1), dtype=float)


def concept_score(
    name: str, values: Float[np.ndarray, " images"], concepts: Int[np.ndarray, " images"], chance: float
) -> Score:
    """Return the macro average over concepts, whose units are the concepts."""
    return Score(name, means_by_cluster(values, concepts)[0], chance)


def gap_score(name: str, general: Score, cultural: Score) -> Score:
    """Return how much higher the mean of some concepts is than that of others; its units are the concepts of both."""
    units = len(general.clusters) + len(cultural.clusters)
    # Each mean moves with its own concepts alone, in inverse proportion to their number.
    of_general = general.influence() * units / len(general.clusters)
    of_cultural = cultural.influence() * units / len(cultural.clusters)
    influence = np.concatenate([of_general, -of_cultural])
    return Score.from_influence(name, general.value - cultural.value, influence, 0.0, False)
