"""Knowledge-graph completion with multimodal node features: W_type x feature + a learned vector, and a scorer (UKnow).

A relation and its inverse are two relations, so that heads are predicted as tails are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveInt
from polymodal.data.knowledge_graph import CONTENT, KnowledgeGraph
from polymodal.layers.graph import RelationalGraphConvolution
from polymodal.layers.knowledge_graph_embedding import scorer

Scorer = Literal["transe", "distmult", "conve", "rgcn"]
NodeFeatures = Literal["both", "text", "ids"]
BASES = 4  # of R-GCN


class LinkBatch(TypedDict):
    """Triplets of the graph, of which the tail is predicted. Numbers of inverse relations follow those of relations."""

    head: Int[Tensor, " batch"]
    relation: Int[Tensor, " batch"]
    tail: Int[Tensor, " batch"]


@dataclass(frozen=True)
class KnowledgeGraphCompletionConfig:
    """Embeddings of nodes, and how triplets are scored."""

    scorer: Scorer = "distmult"
    """TransE, DistMult or ConvE; rgcn: an R-GCN layer over the training triplets, and then DistMult."""
    node_features: NodeFeatures = "both"
    """Features that nodes have beside their learned vector: of images, objects and texts; of texts alone; or none."""
    dim: PositiveInt = 64
    """Dimensions of the embeddings of nodes and relations."""


class KnowledgeGraphCompletion(nn.Module):
    """Scores of tails. Features are a buffer, which `set_features` fills; nodes without have zeros."""

    features: Tensor
    known_triplets: Tensor
    edges: Tensor
    edge_relations: Tensor

    def __init__(self, graph: KnowledgeGraph, feature_dim: int, config: KnowledgeGraphCompletionConfig):
        super().__init__()
        self.config, self.num_nodes, self.num_relations = config, len(graph), len(graph.relations)
        self.residual = nn.Embedding(len(graph), config.dim)
        self.relation = nn.Embedding(2 * self.num_relations, config.dim)
        nn.init.normal_(self.residual.weight, std=config.dim**-0.5)
        nn.init.normal_(self.relation.weight, mean=1.0 if config.scorer in ("distmult", "rgcn") else 0.0, std=0.1)
        kinds = [kind for kind in self._kinds() if kind in graph.types]
        self.projections = nn.ModuleDict({kind: nn.Linear(feature_dim, config.dim) for kind in kinds})
        self.scorer = scorer("distmult" if config.scorer == "rgcn" else config.scorer, config.dim)
        every = in_both_directions(graph, graph.training_triplets)
        self.register_buffer("features", torch.zeros(len(graph), feature_dim))
        self.register_buffer(
            "known_triplets", triplet_codes(*every, len(graph), self.num_relations).unique(), persistent=False
        )
        for kind in kinds:
            self.register_buffer(f"nodes_{kind}", torch.from_numpy(graph.of_type(kind)), persistent=False)
        if config.scorer == "rgcn":
            self.encoder = RelationalGraphConvolution(config.dim, config.dim, 2 * self.num_relations, BASES)
            self.register_buffer("edges", torch.stack([every[0], every[2]]), persistent=False)
            self.register_buffer("edge_relations", every[1], persistent=False)

    def _kinds(self) -> tuple[str, ...]:
        return {"both": CONTENT, "text": ("text",), "ids": ()}[self.config.node_features]

    @torch.no_grad()
    def set_features(self, nodes: Int[np.ndarray, " some"], features: Float[Tensor, "some feature_dim"]) -> None:
        """Set the frozen features of some nodes.

        features: L2-normalized; they are scaled to entries of variance 1, so that they weigh more than learned vectors.
        """
        scaled = features.to(self.features) * features.shape[1] ** 0.5
        self.features[torch.tensor(nodes, device=self.features.device)] = scaled

    def embeddings(self) -> Float[Tensor, "nodes dim"]:
        """Embeddings of all nodes: e = W_type feature + residual vector."""
        e = self.residual.weight
        for kind, projection in self.projections.items():
            nodes = self.get_buffer(f"nodes_{kind}")
            e = e.index_add(0, nodes, projection(self.features[nodes]))
        return e if self.config.scorer != "rgcn" else F.relu(self.encoder(e, self.edges, self.edge_relations))

    def forward(self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]) -> Float[Tensor, "batch nodes"]:
        """Scores of every node as the tail. relation: those from `num_relations` on are inverse."""
        e = self.embeddings()
        return self.scorer(e[head], self.relation(relation), e)

    def known_tails(self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]) -> Bool[Tensor, "batch nodes"]:
        """Which nodes are the tail of a training triplet."""
        tails = torch.arange(self.num_nodes, device=head.device)
        codes = triplet_codes(head[:, None], relation[:, None], tails, self.num_nodes, self.num_relations)
        return contains(self.known_triplets, codes)

    def loss(
        self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"], tail: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the tail among all nodes but its other known tails."""
        scores = self(head, relation)
        others = self.known_tails(head, relation).scatter(1, tail[:, None], False)
        return F.cross_entropy(scores.masked_fill(others, -torch.inf), tail)


class CompletesGraph:
    """Link prediction of a method with a `completion` of its `graph`; None for a method that learns no links."""

    graph: KnowledgeGraph
    completion: KnowledgeGraphCompletion | None

    def link_losses(self, batch: LinkBatch) -> dict[str, Tensor]:
        """link_prediction: cross-entropy of the tail among all nodes, but the other true ones."""
        assert self.completion is not None
        return {"link_prediction": self.completion.loss(batch["head"], batch["relation"], batch["tail"])}

    def link_graph(self) -> KnowledgeGraph | None:
        return None if self.completion is None else self.graph

    def link_scores(self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]) -> Float[Tensor, "batch nodes"]:
        """Scores of every node as the tail."""
        assert self.completion is not None
        return self.completion(head, relation)


class LinkedNodes(nn.Module):
    """Says which nodes of a graph have an edge between them, in either direction: these are no negatives (UKnow).

    Images of one event are linked whether they have an edge or not, as each has one to a few of the others alone.
    """

    edges: Tensor
    events: Tensor

    def __init__(self, graph: KnowledgeGraph, units: Collection[str]):
        """units: types of unit knowledge whose training triplets count."""
        super().__init__()
        self.num_nodes, used = len(graph), graph.having("train", units)
        head, tail = graph.heads[used], graph.tails[used]
        edges = np.unique(np.concatenate([head * self.num_nodes + tail, tail * self.num_nodes + head]))
        self.register_buffer("edges", torch.from_numpy(edges), persistent=False)
        same = used & (np.array(graph.triplets.column("relation").to_pylist(), dtype=str) == "same_event")
        events = groups_of(graph.heads[same], graph.tails[same], self.num_nodes)
        self.register_buffer("events", torch.from_numpy(events), persistent=False)

    def forward(self, a: Float[Tensor, " rows"], b: Float[Tensor, " columns"]) -> Bool[Tensor, "rows columns"]:
        """Return which pairs are the same node or have an edge. a, b: numbers of nodes, below 0 for none."""
        rows, columns = a[:, None].long(), b.long()
        linked = contains(self.edges, rows * self.num_nodes + columns)
        return (linked | (self.events[rows] == self.events[columns])) & (rows >= 0) & (columns >= 0)


def groups_of(
    heads: Int[np.ndarray, " edges"], tails: Int[np.ndarray, " edges"], nodes: int
) -> Int64[np.ndarray, " nodes"]:
    """Return the number of the connected component of each node."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    adjacency = coo_array((np.ones(len(heads), dtype=np.int8), (heads, tails)), shape=(nodes, nodes))
    return connected_components(adjacency, directed=False)[1].astype(np.int64)


def sample_triplets(graph: KnowledgeGraph, rngs: Sequence[np.random.Generator]) -> LinkBatch:
    """Return a training triplet for each generator, uniformly, of which head or tail is predicted equally often."""
    training = graph.training_triplets
    places = np.array([training[int(rng.integers(len(training)))] for rng in rngs])
    inverse = np.array([rng.random() < 0.5 for rng in rngs])
    head, relation, tail = (one[places] for one in triplet_arrays(graph))
    ends = (np.where(inverse, tail, head), relation + inverse * len(graph.relations), np.where(inverse, head, tail))
    head, relation, tail = (torch.from_numpy(one) for one in ends)
    return {"head": head, "relation": relation, "tail": tail}


def triplet_arrays(
    graph: KnowledgeGraph,
) -> tuple[Int[np.ndarray, " triplets"], Int[np.ndarray, " triplets"], Int[np.ndarray, " triplets"]]:
    """Return heads, numbers of relations and tails."""
    return graph.heads, graph.relation_numbers, graph.tails


def in_both_directions(graph: KnowledgeGraph, triplets: Int[np.ndarray, " some"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return heads, relations and tails of triplets, and then those of their inverses."""
    head, relation, tail = (torch.tensor(one[triplets]) for one in triplet_arrays(graph))
    inverse = relation + len(graph.relations)
    return torch.cat([head, tail]), torch.cat([relation, inverse]), torch.cat([tail, head])


def triplet_codes(head: Tensor, relation: Tensor, tail: Tensor, nodes: int, relations: int) -> Tensor:
    """Return a number of each triplet, by which it is found again. nodes, relations: of the graph."""
    return (head * 2 * relations + relation) * nodes + tail


def contains(ordered: Int64[Tensor, " known"], values: Int64[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Return which values are among others, which are in ascending order."""
    if not len(ordered):
        return torch.zeros_like(values, dtype=torch.bool)
    places = torch.searchsorted(ordered, values.contiguous()).clamp(max=len(ordered) - 1)
    return ordered[places] == values
