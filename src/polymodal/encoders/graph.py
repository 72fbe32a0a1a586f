"""Graphs of any kind to tokens: rounds of graph convolution or graph attention over node vectors.

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
    """Several graphs as one, without edges between them.

    nodes: a vector each. ends: source and target of every edge; one without direction stands twice. graph: of each
    node, its graph's number.
    """

    nodes: Float[Tensor, "nodes features"]
    ends: Int[Tensor, "2 edges"]
    graph: Int[Tensor, " nodes"]
    count: int

    def to(self, device: torch.device | str) -> VectorGraph:
        nodes, ends, graph = (part.to(device) for part in (self.nodes, self.ends, self.graph))
        return VectorGraph(nodes, ends, graph, self.count)

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class GraphEncoderConfig:
    """The graph tower."""

    num_features: PositiveInt = 64
    """Values of a node's vector."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Rounds of messages: how many edges away a node sees."""
    num_heads: PositiveInt = 4
    """Attention heads; for attention only."""
    message_passing: Literal["convolution", "attention"] = "convolution"
    """What weighs neighbors: their degrees (GCN), or attention (GAT)."""

    def build(self) -> Encoder:
        return GraphEncoder(self)


class GraphEncoder(Encoder):
    """One token a node, and the pooled vector: their mean. The order of nodes and edges does not matter."""

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
            x = x + F.gelu(messages(norm(x), batch.ends))
        return x, global_mean_pool(x, batch.graph, batch.count)
