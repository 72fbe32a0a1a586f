"""Edge-typed sampling of positives from a knowledge graph: the relation first, then the neighbor (UKnow)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Int

from polymodal.data.knowledge_graph import KnowledgeGraph


class EdgeSampler:
    """Samples neighbors of nodes by some relations, from training triplets.

    Relations of a node are equally probable whatever their number of neighbors. Hubs, such as frequent tags, are
    neighbors of at most `max_degree` nodes by a relation, and a node has as many neighbors at most; which they are is
    sampled once.
    """

    def __init__(self, graph: KnowledgeGraph, relations: Collection[str], max_degree: int, seed: int = 0):
        """relations: names; those that the graph lacks are left out. max_degree: at least 1."""
        self._neighbors: dict[int, list[Int[np.ndarray, " neighbors"]]] = {}
        training, rng = graph.having("train"), np.random.default_rng(seed)
        for number, name in enumerate(graph.relations):
            if name not in relations:
                continue
            places = rng.permutation(np.flatnonzero(training & (graph.relation_numbers == number)))
            heads, tails = graph.heads[places], graph.tails[places]
            # Of each end the first triplets in the sampled order stay.
            stays = (_occurrence(heads) < max_degree) & (_occurrence(tails) < max_degree)
            heads, tails = heads[stays], tails[stays]
            order = np.argsort(heads, kind="stable")
            nodes, first = np.unique(heads[order], return_index=True)
            for node, neighbors in zip(nodes.tolist(), np.split(tails[order], first[1:]), strict=True):
                self._neighbors.setdefault(node, []).append(neighbors)

    def __contains__(self, node: int) -> bool:
        return node in self._neighbors

    def sample(self, node: int, rng: np.random.Generator) -> int:
        """Return a neighbor of a node; -1 where it has none."""
        if (by_relation := self._neighbors.get(node)) is None:
            return -1
        neighbors = by_relation[int(rng.integers(len(by_relation)))]
        return int(neighbors[int(rng.integers(len(neighbors)))])


def _occurrence(values: Int[np.ndarray, " values"]) -> Int[np.ndarray, " values"]:
    """Return for each value how often it stands before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else np.zeros(0, int)
    counted = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    occurrence = np.empty(len(values), dtype=np.int64)
    occurrence[order] = counted
    return occurrence
