"""Experts that choose their tokens (Zhou et al. 2022), and routers that predict it (MoMa, Lin et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class AuxiliaryRouter(nn.Module):
    """Whether a token will be chosen, told from the token alone: sigmoid(silu(x W1) W2) above a half (equation 6)."""

    shard_separately: ClassVar[bool] = True  # its loss is no output of the block: FSDP2 would not gather it

    def __init__(self, width: int, choices: int):
        super().__init__()
        self.hidden = nn.Linear(width, width // 2, bias=False)
        self.out = nn.Linear(width // 2, choices, bias=False)

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens choices"]:
        """Logits."""
        return self.out(F.silu(self.hidden(x)))

    def loss(
        self, x: Float[Tensor, "tokens width"], chosen: Bool[Tensor, "tokens choices"]
    ) -> Float[Tensor, ""] | None:
        """Binary cross-entropy against the choice among a whole batch; None while it does not learn, or of nothing."""
        if not self.out.weight.requires_grad or not len(x):
            return None
        return F.binary_cross_entropy_with_logits(self(x.detach()), chosen.to(x.dtype))


def gumbel_sigmoid(logits: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """sigmoid(logits + G1 - G2) of two independent Gumbel samples, whose difference is logistic (equation 5)."""
    lot = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return (logits + torch.log(lot) - torch.log1p(-lot)).sigmoid()


class ExpertChoice(nn.Module):
    """MLPs (SwiGLU), each of which takes 1 / experts of a batch's tokens; a token goes through one on average.

    What a token gets is the sum over the experts that chose it, by the sigmoid of its score with each; a token that
    none chose gets 0. All experts are one matrix product. A choice among a batch sees what comes later in a text: what
    is written or measured word by word goes by auxiliary routers (`use_predictor`), which are trained afterwards. The
    batch is what a process computes at once, so the choice is another one with micro-batches or several processes.
    """

    def __init__(self, width: int, mlp_dim: int, num_experts: int, noise: bool = False):
        """noise: Gumbel noise on the scores while training, which tells experts apart that began alike."""
        super().__init__()
        self.num_experts, self.noise = num_experts, noise
        self.router = nn.Linear(width, num_experts, bias=False)
        self.auxiliary = AuxiliaryRouter(width, num_experts)
        self.gate_up = nn.Parameter(torch.empty(num_experts, width, 2 * mlp_dim))
        self.down = nn.Parameter(torch.empty(num_experts, mlp_dim, width))
        nn.init.normal_(self.gate_up, std=width**-0.5)
        nn.init.normal_(self.down, std=mlp_dim**-0.5)
        self.auxiliary_loss: Tensor | None = None
        self.use_predictor: Tensor
        self.single_expert: Tensor
        self.register_buffer("use_predictor", torch.tensor(False))
        self.register_buffer("single_expert", torch.tensor(False))

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        if self.single_expert:
            return self._mlp(x[None], slice(0, 1))[0]
        logits = self.router(x)
        if self.use_predictor and not self.training:
            return self._by_auxiliary(x, logits.sigmoid())
        scores = gumbel_sigmoid(logits) if self.noise and self.training else logits.sigmoid()
        best = scores.topk(-(-len(x) // self.num_experts), dim=0)
        self.auxiliary_loss = self.auxiliary.loss(x, _marked(best.indices, len(x)))
        chosen = best.indices.T.flatten()
        found = self._mlp(x[chosen].unflatten(0, (self.num_experts, -1)), slice(None))
        return torch.zeros_like(x).index_add(0, chosen, (best.values.T[..., None] * found).flatten(0, 1).to(x.dtype))

    def _by_auxiliary(
        self, x: Float[Tensor, "tokens width"], scores: Float[Tensor, "tokens experts"]
    ) -> Float[Tensor, "tokens width"]:
        """Every token goes to the experts that its auxiliary router names, however many they are."""
        found = torch.zeros_like(x)
        named = self.auxiliary(x) > 0
        for expert in range(self.num_experts):
            tokens = named[:, expert].nonzero().squeeze(1)
            done = self._mlp(x[tokens][None], slice(expert, expert + 1))[0]
            found.index_add_(0, tokens, scores[tokens, expert, None] * done)
        return found

    def _mlp(self, x: Float[Tensor, "some tokens width"], experts: slice) -> Float[Tensor, "some tokens width"]:
        gate, up = torch.bmm(x, self.gate_up[experts]).chunk(2, dim=2)
        return torch.bmm(F.silu(gate) * up, self.down[experts])

    @torch.no_grad()
    def upcycle(self) -> None:
        """All experts become copies of the first, which was alone; twice as strong, for a score begins at a half."""
        self.gate_up.copy_(self.gate_up[:1].expand_as(self.gate_up))
        self.down.copy_(2 * self.down[:1].expand_as(self.down))
        self.single_expert.fill_(False)


def _marked(places: Tensor, count: int) -> Bool[Tensor, "tokens choices"]:
    """True where a token is among a choice's places."""
    return torch.zeros(count, places.shape[1], dtype=torch.bool, device=places.device).scatter(0, places, True)
