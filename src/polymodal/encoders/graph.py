"""Graph encoder: graph convolution (GCN) or graph attention (GAT) over node vectors.

Needed by: unigraph2, formnetv2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.graph import GraphAttention, GraphConvolution, global_mean_pool


@dataclass(frozen=True)
class VectorGraph:
    """Batch of graphs as one disconnected graph.

    nodes: feature vectors. ends: source and target of every edge; an undirected edge is listed twice. graph: index of
    each node's graph.
    """

    nodes: Float[Tensor, "nodes features"]
    ends: Int[Tensor, "2 edges"]
    graph: Int[Tensor, " nodes"]
    count: int

    def to(self, device: torch.device | str) -> VectorGraph:
        nodes, ends, graph = (tensor.to(device) for tensor in (self.nodes, self.ends, self.graph))
        return VectorGraph(nodes, ends, graph, self.count)

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class GraphEncoderConfig:
    """Configuration of the graph encoder."""

    num_features: PositiveInt = 64
    """Features per node."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of message-passing layers: the receptive field in edges."""
    num_heads: PositiveInt = 4
    """Attention heads; for message_passing=attention only."""
    message_passing: Literal["convolution", "attention"] = "convolution"
    """Weights of neighbors: by degree (GCN), or by attention (GAT)."""

    def build(self) -> Encoder:
        return GraphEncoder(self)


class GraphEncoder(Encoder):
    """Message-passing encoder: one token per node, pooled by their mean; invariant to the order of nodes and edges."""

    def __init__(self, config: GraphEncoderConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.project = nn.Linear(config.num_features, width)
        self.rounds = nn.ModuleList(
            GraphAttention(width, width, config.num_heads)
            if config.message_passing == "attention"
            else GraphConvolution(width, width)
            for _ in range(config.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.depth))

    def forward(self, batch: VectorGraph) -> tuple[Float[Tensor, "nodes width"], Float[Tensor, "batch width"]]:
        x = self.project(batch.nodes)
        for messages, norm in zip(self.rounds, self.norms, strict=True):
            # Pre-norm residual message passing.
            x = x + F.gelu(messages(norm(x), batch.ends))
        return x, global_mean_pool(x, batch.graph, batch.count)
