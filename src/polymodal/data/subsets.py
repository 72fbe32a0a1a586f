"""Subsets of training rows for studies of data scale, and languages sampled with given probabilities (WebLI-100B).

Subsets are made of hashes of the rows' keys, so that a smaller one is part of every larger one, in any order of the
rows and on any machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from polymodal.data._grain import grain
from polymodal.errors import UserError, unknown


def nested_subset(keys: Sequence[str], fraction: float, seed: int = 0) -> Int[np.ndarray, " subset"]:
    """Return the places of a uniform random subset of round(fraction * keys) keys, at least one, in ascending order.

    Of one seed, a subset of a smaller fraction is part of that of a larger one; other seeds give independent subsets.
    """
    salt = seed.to_bytes(8, "little")
    hashes = [hashlib.blake2b(key.encode(), digest_size=8, salt=salt).digest() for key in keys]
    order = sorted(range(len(keys)), key=hashes.__getitem__)
    return np.sort(np.array(order[: max(round(fraction * len(keys)), 1)], dtype=np.int64))


def best_scored(scores: np.ndarray, fraction: float) -> Int[np.ndarray, " best"]:
    """Return the places of the round(fraction * scores) largest scores, at least one, in ascending order; NaN is last.

    Of equal scores the first are taken.
    """
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return np.sort(order[: max(round(fraction * len(scores)), 1)])


def rebalanced(counts: Mapping[str, int], low_resource: Collection[str], probability: float) -> dict[str, float]:
    """Return sampling probabilities of languages: each low-resource one has `probability`, the others share the rest.

    counts: training pairs of each language. The others keep their ratios (section 3). Raises UserError for a language
    without pairs, and where nothing is left for the others.
    """
    if strange := sorted({*low_resource} - {name for name, count in counts.items() if count}):
        raise unknown("language of the training pairs", strange[0], counts)
    others = {name: count for name, count in counts.items() if name not in low_resource}
    rest = 1 - probability * len({*low_resource})
    if rest <= 0 or not sum(others.values()):
        raise UserError(
            f"{len({*low_resource})} languages with a probability of {probability:g} each leave nothing for the "
            "others; take fewer of them, or a smaller probability."
        )
    total = sum(others.values())
    raised = dict.fromkeys(low_resource, probability)
    return {name: raised.get(name, rest * count / total) for name, count in counts.items()}


def epochs_by_group(counts: Mapping[str, int], probabilities: Mapping[str, float], examples: int) -> dict[str, float]:
    """Return how often each pair of a group is seen among so many examples, on average."""
    return {name: examples * probabilities[name] / count for name, count in counts.items() if count}


def grouped_order(groups: Sequence[np.ndarray], probabilities: Sequence[float], seed: int) -> Any:
    """Return an endless order of rows in which groups alternate by their probabilities, each in epochs of its own.

    Rows of a group are shuffled anew in each of its epochs. Groups of probability 0 are left out. The order has random
    access (`corpora.corpus.Part.order`).
    """
    kept = [number for number, probability in enumerate(probabilities) if probability]
    endless = [grain.MapDataset.source(groups[number]).seed(seed + number).shuffle().repeat() for number in kept]
    return grain.MapDataset.mix(endless, weights=[probabilities[number] for number in kept])
