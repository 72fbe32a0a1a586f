"""Message passing on graphs: graph convolution (GCN), also without weights (LightGCN) and by relation (R-GCN), and
graph attention (GAT)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError


def add_self_loops(ends: Int[Tensor, "2 edges"], nodes: int) -> Int[Tensor, "2 edges_and_nodes"]:
    """Add an edge from every node to itself."""
    nodes_index = torch.arange(nodes, device=ends.device)
    return torch.cat([ends, nodes_index.expand(2, -1)], dim=1)


def symmetric_weights(ends: Int[Tensor, "2 edges"], nodes: int) -> Float[Tensor, " edges"]:
    """Return 1 / sqrt(degree of source * degree of target) per edge (Kipf & Welling 2017, equation 2).

    Degrees count incoming edges, so an undirected graph lists each edge in both directions.
    """
    degree = torch.bincount(ends[1], minlength=nodes).clamp(min=1).float()
    return (degree[ends[0]] * degree[ends[1]]).rsqrt()


def scatter_sum(
    messages: Float[Tensor, "edges ..."], target: Int[Tensor, " edges"], nodes: int
) -> Float[Tensor, "nodes ..."]:
    """Sum the messages that arrive at each node."""
    return messages.new_zeros(nodes, *messages.shape[1:]).index_add(0, target, messages)


def propagate(
    x: Float[Tensor, "*batch nodes"], ends: Int[Tensor, "2 edges"], weights: Float[Tensor, " edges"], num_layers: int
) -> Float[Tensor, "*batch nodes"]:
    """Apply graph convolutions without parameters: x A^num_layers (LightGCN, He et al. 2020, equation 3).

    x: one value per node. ends, weights: the sparse A, from source (row) to target (column).
    """
    nodes = x.shape[-1]
    # A^T, as torch multiplies sparse matrices from the left only.
    transposed = torch.sparse_coo_tensor(ends.flip(0), weights, (nodes, nodes), check_invariants=False)
    flat = x.reshape(-1, nodes).T
    for _ in range(num_layers):
        flat = torch.sparse.mm(transposed, flat)
    return flat.T.view_as(x)


def global_mean_pool(
    x: Float[Tensor, "nodes width"], graph: Int[Tensor, " nodes"], count: int
) -> Float[Tensor, "batch width"]:
    """Average node features per graph. graph: index of each node's graph. count: number of graphs."""
    return scatter_sum(x, graph, count) / graph.bincount(minlength=count).clamp(min=1)[:, None]


class GraphConvolution(nn.Module):
    """GCN (Kipf & Welling 2017, equation 2, without its nonlinearity)."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width_out, bias=False)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(
        self, x: Float[Tensor, "nodes width_in"], ends: Int[Tensor, "2 edges"]
    ) -> Float[Tensor, "nodes width_out"]:
        """Convolve. ends: source and target of every edge; self-loops are added here."""
        ends = add_self_loops(ends, len(x))
        # Equation 2: D^(-1/2) (A + I) D^(-1/2) X W, as messages along edges.
        messages = self.linear(x)[ends[0]] * symmetric_weights(ends, len(x))[:, None]
        return scatter_sum(messages, ends[1], len(x)) + self.bias


class RelationalGraphConvolution(nn.Module):
    """R-GCN (Schlichtkrull et al. 2018, equations 2 and 3, without its nonlinearity), with basis decomposition."""

    def __init__(self, width_in: int, width_out: int, num_relations: int, num_bases: int):
        super().__init__()
        self.bases = nn.Parameter(torch.empty(num_bases, width_in, width_out))
        self.coefficients = nn.Parameter(torch.empty(num_relations, num_bases))
        self.self_loop = nn.Linear(width_in, width_out)
        for weight in (self.bases, self.coefficients):
            nn.init.xavier_uniform_(weight)

    def forward(
        self, x: Float[Tensor, "nodes width_in"], ends: Int[Tensor, "2 edges"], relation: Int[Tensor, " edges"]
    ) -> Float[Tensor, "nodes width_out"]:
        """Convolve. ends: source and target of every edge. relation: its number.

        Messages of a relation are averaged over the neighbors of a node by it (1 / c_{i,r}).
        """
        nodes, relations = len(x), len(self.coefficients)
        group = ends[1] * relations + relation
        weight = 1 / group.bincount(minlength=nodes * relations)[group].to(x.dtype)
        # Equation 3: W_r = sum_b a_rb V_b; messages of each basis are summed by their coefficient.
        scaled = self.coefficients[relation] * weight[:, None]
        messages = torch.stack([scatter_sum(x[ends[0]] * one[:, None], ends[1], nodes) for one in scaled.unbind(1)])
        return torch.einsum("bni,bio->no", messages, self.bases) + self.self_loop(x)


class GraphAttention(nn.Module):
    """GAT (Veličković et al. 2018, equations 1 to 5): attention over the neighbors of a node and itself."""

    def __init__(self, width_in: int, width_out: int, num_heads: int):
        super().__init__()
        if width_out % num_heads:
            raise UserError(f"A width of {width_out} does not divide into {num_heads} heads.")
        self.num_heads = num_heads
        self.linear = nn.Linear(width_in, width_out, bias=False)
        self.source = nn.Parameter(torch.empty(num_heads, width_out // num_heads))
        self.target = nn.Parameter(torch.empty(num_heads, width_out // num_heads))
        self.bias = nn.Parameter(torch.zeros(width_out))
        for vector in (self.source, self.target):
            nn.init.xavier_uniform_(vector)

    def forward(
        self, x: Float[Tensor, "nodes width_in"], ends: Int[Tensor, "2 edges"]
    ) -> Float[Tensor, "nodes width_out"]:
        """Attend to neighbors. ends: source and target of every edge; self-loops are added here."""
        source, target = add_self_loops(ends, len(x))
        values = self.linear(x).unflatten(1, (self.num_heads, -1))
        sent, received = (values * self.source).sum(-1), (values * self.target).sum(-1)
        # Equation 3: e_ij = LeakyReLU(a^T [W h_i || W h_j]), with a split into target and source parts.
        logits = F.leaky_relu(sent[source] + received[target], 0.2)
        # Softmax over the incoming edges of each node; the maximum is subtracted for numerical stability.
        highest = logits.new_full((len(x), self.num_heads), -torch.inf)
        highest = highest.scatter_reduce(0, target[:, None].expand_as(logits), logits.detach(), "amax")
        weights = (logits - highest[target]).exp()
        # alpha_ij = softmax_j(e_ij), then h_i = sum_j alpha_ij W h_j per head (equations 3 to 5).
        weights = weights / scatter_sum(weights, target, len(x))[target]
        return scatter_sum(weights[..., None] * values[source], target, len(x)).flatten(1) + self.bias
