"""Mixture of experts with top-2 routing, as in GShard (Lepikhin et al. 2021, algorithms 1 and 2).

Each token goes to the two experts of highest gate, as far as they have capacity. EVE (Chen et al. 2024) adds a learned
embedding of a token's modality to what router and experts read, so that experts can specialize by modality. The rules
are those of DeepSpeed's `top2gating`, which EVE's released code copies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather, all_gather_with_grad

MODALITY_STD = 0.02  # of the modality embedding (EVE, released code)


def quick_gelu(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return x * sigmoid(1.702 x), the approximation of GELU that CLIP's released code has."""
    return x * torch.sigmoid(1.702 * x)


class Top2Routing(NamedTuple):
    """What `top2_routing` decides; the rows of each are the first and the second expert.

    position: of the token in its expert's buffer. weight: of the expert's output; 0 where the token found no capacity.
    balance_loss: 1 for a uniform router.
    """

    expert: Int[Tensor, "2 tokens"]
    position: Int[Tensor, "2 tokens"]
    weight: Float[Tensor, "2 tokens"]
    balance_loss: Float[Tensor, ""]


def top2_routing(
    logits: Float[Tensor, "tokens experts"], capacity: int | None = None, noise: bool = False
) -> Top2Routing:
    """Choose two experts of each token.

    capacity: maximum tokens of an expert; first choices come before second ones, and both in the order of the tokens.
    None: no maximum. noise: whether the second expert is sampled by its gate (Gumbel-max trick); else it is the second
    best.
    """
    logits = logits.float()
    gates, num_experts = logits.softmax(1), logits.shape[1]
    first = gates.argmax(1)
    noisy = logits - torch.rand_like(logits).clamp(1e-20).log().neg().log() if noise else logits
    second = noisy.scatter(1, first[:, None], -torch.inf).argmax(1)
    expert = torch.stack([first, second])
    chosen = F.one_hot(expert, num_experts)
    # Place of each token in the queue of its expert; second choices queue behind all first ones.
    queue = chosen.cumsum(1) - 1
    queue[1] += chosen[0].sum(0)
    position = queue.gather(2, expert[..., None]).squeeze(2)
    gate = gates[None].expand(2, -1, -1).gather(2, expert[..., None]).squeeze(2)
    if capacity is not None:
        gate = gate * (position < capacity)
    weight = gate / gate.sum(0).clamp(min=torch.finfo(gate.dtype).eps)
    return Top2Routing(expert, position, weight, balance_loss(gates, chosen[0]))


def balance_loss(gates: Float[Tensor, "tokens experts"], first: Int[Tensor, "tokens experts"]) -> Float[Tensor, ""]:
    """Return experts * sum over experts of mean gate * fraction of first choices, over the tokens of all processes.

    first: one-hot. The gradient reaches the gates alone.
    """
    sums = all_gather_with_grad(gates.sum(0, keepdim=True)).sum(0)
    counts = all_gather(first.sum(0, keepdim=True).to(gates.dtype)).sum(0)
    tokens = counts.sum().clamp(min=1)
    return gates.shape[1] * ((sums / tokens) * (counts / tokens)).sum()


class Top2MoE(nn.Module):
    """Experts, each a two-layer MLP with QuickGELU, of which each token takes two.

    In training, an expert has a capacity of ceil(2 * capacity_factor * tokens / experts) tokens, so that all experts
    are one batched matrix product; a token that finds no capacity has an output of 0 (the residual connection passes it
    on). In evaluation no token is dropped, so that an output depends on its token alone. Padding is to be left out by
    the caller, as every token takes capacity.
    """

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        num_experts: int,
        num_modalities: int = 0,
        capacity_factor: float = 1.0,
        eval_capacity_factor: float | None = None,
        min_capacity: int = 4,
    ):
        """num_modalities: of the embedding that router and experts read; 0: none. eval_capacity_factor: in evaluation;
        None: no token is dropped. min_capacity: tokens that an expert takes at least."""
        super().__init__()
        self.num_experts, self.min_capacity = num_experts, min_capacity
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.router = nn.Linear(width, num_experts, bias=False)
        self.modality_embedding: nn.Parameter | None = None
        if num_modalities:
            self.modality_embedding = nn.Parameter(MODALITY_STD * torch.randn(num_modalities, width))
        self.fc1, self.fc1_bias = self._linear(width, mlp_dim)
        self.fc2, self.fc2_bias = self._linear(mlp_dim, width)

    def capacity(self, tokens: int) -> int | None:
        """Return the maximum tokens of an expert, of so many in all; None where there is none."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None:
            return None
        return max(self.min_capacity, math.ceil(2 * factor * tokens / self.num_experts))

    def route(
        self, x: Float[Tensor, "tokens width"], modality: Int[Tensor, " tokens"] | None = None
    ) -> tuple[Float[Tensor, "tokens width"], Top2Routing]:
        """Return what the experts read, and the routing. modality: number of each token's modality."""
        if self.modality_embedding is not None:
            assert modality is not None
            x = x + self.modality_embedding[modality]
        with torch.autocast(x.device.type, enabled=False):  # the router is in float32 (GShard, section 2.2)
            logits = F.linear(x.float(), self.router.weight.float())
        return x, top2_routing(logits, self.capacity(len(x)), noise=self.training)

    def forward(
        self, x: Float[Tensor, "tokens width"], modality: Int[Tensor, " tokens"] | None = None
    ) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, ""]]:
        """Return the outputs and the balance loss."""
        x, routing = self.route(x, modality)
        capacity = self.capacity(len(x))
        outputs = self._without_maximum(x, routing) if capacity is None else self._dispatched(x, routing, capacity)
        return (outputs * routing.weight[..., None].to(outputs.dtype)).sum(0), routing.balance_loss

    def _dispatched(
        self, x: Float[Tensor, "tokens width"], routing: Top2Routing, capacity: int
    ) -> Float[Tensor, "2 tokens width"]:
        """The outputs of both experts of each token, from a buffer of `capacity` rows for each expert."""
        rows = self.num_experts * capacity
        slots = torch.where(routing.position < capacity, routing.expert * capacity + routing.position, rows)
        buffer = x.new_zeros(rows + 1, x.shape[1])  # the last row takes what is dropped
        for slot in slots:
            buffer = buffer.index_copy(0, slot, x)
        y = self._experts(buffer[:rows].unflatten(0, (self.num_experts, capacity))).flatten(0, 1)
        return y[slots.clamp(max=rows - 1)]

    def _without_maximum(
        self, x: Float[Tensor, "tokens width"], routing: Top2Routing
    ) -> Float[Tensor, "2 tokens width"]:
        """The same, expert after expert, each with as many tokens as chose it."""
        expert = routing.expert.flatten()
        order = expert.argsort(stable=True)
        counts = torch.bincount(expert, minlength=self.num_experts).tolist()
        parts = x[order % len(x)].split(counts) if len(x) else ()
        y = torch.cat([x[:0], *(self._experts(part[None], slice(n, n + 1))[0] for n, part in enumerate(parts))])
        return torch.zeros_like(y).index_copy(0, order, y).unflatten(0, (2, len(x)))

    def _experts(
        self, x: Float[Tensor, "some tokens width"], experts: slice = slice(None)
    ) -> Float[Tensor, "some tokens width"]:
        x = quick_gelu(torch.baddbmm(self.fc1_bias[experts, None], x, self.fc1[experts]))
        return torch.baddbmm(self.fc2_bias[experts, None], x, self.fc2[experts])

    def _linear(self, inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Weight and bias of each expert's layer, initialized as by nn.Linear."""
        bound = inputs**-0.5
        weight = torch.empty(self.num_experts, inputs, outputs).uniform_(-bound, bound)
        return nn.Parameter(weight), nn.Parameter(torch.zeros(self.num_experts, outputs))
