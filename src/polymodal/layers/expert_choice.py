"""Mixture of experts with expert-choice routing (Zhou et al. 2022) and auxiliary routers (MoMa, Lin et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.decoder import SwiGLU

T = TypeVar("T")


class AuxiliaryRouter(nn.Module):
    """Predictor of the router's choice from the token alone: sigmoid(silu(x W1) W2) > 0.5 (MoMa, equation 6).

    Makes expert choice causal at inference.
    """

    shard_separately: ClassVar[bool] = True  # its loss is not an output of the block, so FSDP2 would not unshard it

    def __init__(self, width: int, choices: int):
        super().__init__()
        self.hidden = nn.Linear(width, width // 2, bias=False)
        self.out = nn.Linear(width // 2, choices, bias=False)

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens choices"]:
        """Return the logits of being chosen."""
        return self.out(F.silu(self.hidden(x)))

    def loss(
        self, x: Float[Tensor, "tokens width"], chosen: Bool[Tensor, "tokens choices"]
    ) -> Float[Tensor, ""] | None:
        """Return the BCE against the choice among the whole batch, 0 for no tokens; None while frozen."""
        if not self.out.weight.requires_grad:
            return None
        logits = self(x.detach())
        if not len(x):  # with gradients of 0, as of other experts without tokens
            return logits.sum()
        return F.binary_cross_entropy_with_logits(logits, chosen.to(x.dtype))


def gumbel_sigmoid(logits: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return sigmoid(logits + G1 - G2) of two independent Gumbel samples, whose difference is logistic (equation 5)."""
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return (logits + torch.log(uniform) - torch.log1p(-uniform)).sigmoid()


class BatchRouter(nn.Module):
    """A module that selects tokens by top-k over the whole batch, with the auxiliary router that predicts the choice.

    Top-k over a batch sees later tokens of a text (it is not causal): generation and likelihoods use the auxiliary
    router (`use_predictor`), which is trained afterwards.
    """

    def __init__(self, width: int, choices: int):
        super().__init__()
        self.router = nn.Linear(width, choices, bias=False)
        self.auxiliary = AuxiliaryRouter(width, choices)
        self.auxiliary_loss: Tensor | None = None
        self.use_predictor: Tensor
        self.register_buffer("use_predictor", torch.tensor(False))


def batch_routers(model: nn.Module) -> Iterator[BatchRouter]:
    """Yield all modules that select tokens among a batch."""
    yield from (module for module in model.modules() if isinstance(module, BatchRouter))


def use_auxiliary_routers(model: nn.Module, used: bool = True) -> None:
    """Predict all choices from a token alone in evaluation mode (MoMa, section 2.4), or select among the batch."""
    for module in batch_routers(model):
        module.use_predictor.fill_(used)


def with_both_choices(model: nn.Module, score: Callable[[], dict[str, T]]) -> tuple[dict[str, T], dict[str, T]]:
    """Return what `score` says with the choices of auxiliary routers, which are causal, and with those among the batch.

    The first is empty before auxiliary routers are in use; both are equal where nothing is chosen, as with a single
    expert.
    """
    routers = [router for router in batch_routers(model) if not getattr(router, "single_expert", False)]
    causal = score() if all(router.use_predictor for router in routers) else {}
    if not routers:
        return causal, causal
    use_auxiliary_routers(model, False)
    whole = score()
    use_auxiliary_routers(model, bool(causal))
    return causal, whole


def auxiliary_losses(model: nn.Module) -> list[Float[Tensor, ""]]:
    """Return the losses of the auxiliary routers that learn, of the last forward pass."""
    return [module.auxiliary_loss for module in batch_routers(model) if module.auxiliary_loss is not None]


class ExpertChoice(BatchRouter):
    """Mixture of experts (MoE) with expert choice: each SwiGLU expert takes its top tokens / experts of the batch.

    Load balancing is exact by construction, so no auxiliary balancing loss is needed. The output is the sum over the
    experts that chose a token, weighted by the sigmoid of its router score; a token that none chose gets 0. All experts
    run as one batched matrix product. The choice is made among the tokens of one forward pass, so it differs with
    micro-batches or several processes.
    """

    def __init__(self, width: int, mlp_dim: int, num_experts: int, noise: bool = False):
        """Build the experts. noise: add Gumbel noise to the scores while the router trains, to break the symmetry of
        upcycled experts."""
        super().__init__(width, num_experts)
        self.num_experts, self.noise = num_experts, noise
        self.gate_up = nn.Parameter(torch.empty(num_experts, width, 2 * mlp_dim))
        self.down = nn.Parameter(torch.empty(num_experts, mlp_dim, width))
        nn.init.normal_(self.gate_up, std=width**-0.5)
        nn.init.normal_(self.down, std=mlp_dim**-0.5)
        self.single_expert: Tensor
        self.register_buffer("single_expert", torch.tensor(False))

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        self.auxiliary_loss = None
        if self.single_expert:
            return self._mlp(x[None], slice(0, 1))[0]
        # Router scores of each token for each expert, through a sigmoid as in MoMa instead of a softmax.
        logits = self.router(x)
        if self.use_predictor and not self.training:
            return self._by_auxiliary(x, logits.sigmoid())
        # No noise once the router is frozen: the auxiliary router learns the choice of inference, which has none.
        noisy = self.noise and self.training and self.router.weight.requires_grad
        scores = gumbel_sigmoid(logits) if noisy else logits.sigmoid()
        # Expert choice: top-k over tokens for each expert, with capacity k = ceil(tokens / experts).
        best = scores.topk(-(-len(x) // self.num_experts), dim=0)
        self.auxiliary_loss = self.auxiliary.loss(x, _marked(best.indices, len(x)))
        chosen = best.indices.T.flatten()
        outputs = self._mlp(x[chosen].unflatten(0, (self.num_experts, -1)), slice(None))
        return torch.zeros_like(x).index_add(0, chosen, (best.values.T[..., None] * outputs).flatten(0, 1).to(x.dtype))

    def _by_auxiliary(
        self, x: Float[Tensor, "tokens width"], scores: Float[Tensor, "tokens experts"]
    ) -> Float[Tensor, "tokens width"]:
        """Route every token to the experts that the auxiliary router predicts, without a capacity limit."""
        result = torch.zeros_like(x)
        predicted = self.auxiliary(x) > 0
        for expert in range(self.num_experts):
            tokens = predicted[:, expert].nonzero().squeeze(1)
            output = self._mlp(x[tokens][None], slice(expert, expert + 1))[0]
            result.index_add_(0, tokens, scores[tokens, expert, None] * output)
        return result

    def _mlp(self, x: Float[Tensor, "some tokens width"], experts: slice) -> Float[Tensor, "some tokens width"]:
        # All experts as one batched matrix product: SwiGLU(x) = down(silu(gate) * up).
        gate, up = torch.bmm(x, self.gate_up[experts]).chunk(2, dim=2)
        return torch.bmm(F.silu(gate) * up, self.down[experts])

    @torch.no_grad()
    def upcycle(self) -> None:
        """Upcycle: copy the first expert to all, with twice the output, as an initial score is sigmoid(0) = 0.5."""
        self.gate_up.copy_(self.gate_up[:1].expand_as(self.gate_up))
        self.down.copy_(2 * self.down[:1].expand_as(self.down))
        self.single_expert.fill_(False)


def swiglu_experts(width: int, mlp_dim: int, num_experts: int, noise: bool = False) -> nn.Module:
    """Return experts with expert choice; a plain MLP in place of a single one, which has nothing to choose."""
    return SwiGLU(width, mlp_dim) if num_experts == 1 else ExpertChoice(width, mlp_dim, num_experts, noise)


def expert_choices(model: nn.Module) -> Iterator[ExpertChoice]:
    """Yield all mixtures of experts with expert choice."""
    yield from (module for module in model.modules() if isinstance(module, ExpertChoice))


def use_single_expert(model: nn.Module) -> None:
    """Send every token to the first expert of each mixture, which is dense then: the start of upcycling."""
    for experts in expert_choices(model):
        experts.single_expert.fill_(True)


def upcycle(model: nn.Module) -> None:
    """Upcycle every mixture of experts (MoMa, section 2.5)."""
    for experts in expert_choices(model):
        experts.upcycle()


def _marked(indices: Tensor, count: int) -> Bool[Tensor, "tokens choices"]:
    """Return True where a token index is in an expert's selection."""
    return torch.zeros(count, indices.shape[1], dtype=torch.bool, device=indices.device).scatter(0, indices, True)
