"""Molecule encoder: graph isomorphism network with bond features (GIN, Xu et al. 2019; GINE, Hu et al. 2020).

Needed by: molfm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.graph import global_mean_pool, scatter_sum
from polymodal.modalities.molecule import ATOM_FEATURES, BOND_FEATURES, MoleculeGraph


@dataclass(frozen=True)
class GraphBatch:
    """Batch of graphs as one disconnected graph. graph: index of each node's graph, nondecreasing."""

    nodes: Int[Tensor, "nodes node_features"]
    ends: Int[Tensor, "2 edges"]
    edges: Int[Tensor, "edges edge_features"]
    graph: Int[Tensor, " nodes"]
    count: int

    def to(self, device: torch.device | str) -> GraphBatch:
        nodes, ends, edges, graph = (tensor.to(device) for tensor in (self.nodes, self.ends, self.edges, self.graph))
        return GraphBatch(nodes, ends, edges, graph, self.count)

    def __len__(self) -> int:
        return self.count


def collate_molecules(molecules: Sequence[MoleculeGraph]) -> GraphBatch:
    """Collate molecules into one disconnected graph."""
    sizes = [len(molecule.atoms) for molecule in molecules]
    starts = np.cumsum([0, *sizes])
    ends = np.concatenate([molecule.ends + start for molecule, start in zip(molecules, starts, strict=False)], axis=1)
    return GraphBatch(
        torch.from_numpy(np.concatenate([molecule.atoms for molecule in molecules])),
        torch.from_numpy(ends),
        torch.from_numpy(np.concatenate([molecule.bonds for molecule in molecules])),
        torch.arange(len(molecules)).repeat_interleave(torch.tensor(sizes)),
        len(molecules),
    )


@dataclass(frozen=True)
class MoleculeEncoderConfig:
    """Configuration of the molecule encoder."""

    width: PositiveInt = 64
    """Embedding width of atoms."""
    depth: NonNegativeInt = 3
    """Number of message-passing layers: the receptive field in bonds."""


class MoleculeEncoder(Encoder):
    """GINE encoder: one token per atom, pooled by their mean; invariant to the order of atoms."""

    def __init__(self, config: MoleculeEncoderConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.atom = nn.ModuleList(nn.Embedding(count, width) for count in ATOM_FEATURES.values())
        self.bond = nn.ModuleList(nn.Embedding(count, width) for count in BOND_FEATURES.values())
        self.epsilon = nn.Parameter(torch.zeros(config.depth))
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(config.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.depth))

    def forward(self, batch: GraphBatch) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "batch width"]]:
        x = torch.stack([table(batch.nodes[:, column]) for column, table in enumerate(self.atom)]).sum(0)
        bonds = torch.stack([table(batch.edges[:, column]) for column, table in enumerate(self.bond)]).sum(0)
        source, target = batch.ends
        for round_, (update, norm) in enumerate(zip(self.updates, self.norms, strict=True)):
            messages = scatter_sum(F.gelu(x[source] + bonds), target, len(x))
            # GINE: MLP((1 + eps) x_i + sum_j GELU(x_j + bond_ij)), with a residual connection and layer norm.
            x = norm(x + update((1 + self.epsilon[round_]) * x + messages))
        return x, global_mean_pool(x, batch.graph, batch.count)
