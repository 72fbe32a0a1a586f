"""Preference optimization losses over pairs of a chosen and a rejected answer (TRL's `loss_type` names).

The implicit reward is beta * log(pi(y|x) / pi_ref(y|x)) for policy pi and reference pi_ref. Every loss is the mean over
pairs.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather, all_gather_with_grad

PreferenceLoss = Literal["dpo", "robust_dpo", "hinge", "ipo", "sppo", "aot", "aot_unpaired", "orpo"]
Rewards = Float[Tensor, " pairs"]
Loss = Float[Tensor, ""]


def dpo(chosen: Rewards, rejected: Rewards, smoothing: float = 0.0) -> Loss:
    """Return -log sigmoid(chosen - rejected) (DPO, Rafailov et al. 2023, equation 7).

    smoothing: assumed probability of a flipped preference, below 0.5 (cDPO, Mitchell 2023).
    """
    margin = chosen - rejected
    return -((1 - smoothing) * F.logsigmoid(margin) + smoothing * F.logsigmoid(-margin)).mean()


def robust_dpo(chosen: Rewards, rejected: Rewards, smoothing: float) -> Loss:
    """Return DPO made unbiased for a probability `smoothing` of flipped preferences (Chowdhury et al. 2024, equation
    12)."""
    margin = chosen - rejected
    kept_loss, flipped_loss = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return (((1 - smoothing) * kept_loss - smoothing * flipped_loss) / (1 - 2 * smoothing)).mean()


def hinge(chosen: Rewards, rejected: Rewards) -> Loss:
    """Return the hinge loss max(0, 1 - margin) (RSO, Liu et al. 2024; SLiC-HF, Zhao et al. 2023)."""
    return (1 - (chosen - rejected)).relu().mean()


def ipo(chosen: Rewards, rejected: Rewards, beta: float) -> Loss:
    """Return the squared distance of the log-ratio margin from 1 / (2 beta) (IPO, Azar et al. 2023, equation 17)."""
    return (((chosen - rejected) / beta - 1 / (2 * beta)).square()).mean()


def sppo(chosen: Rewards, rejected: Rewards, beta: float) -> Loss:
    """Return the squared distances of log-ratios from 1 / (2 beta) (chosen) and -1 / (2 beta) (rejected).

    SPPO (Wu et al. 2024, equation 4.7, with hard preferences).
    """
    middle = 1 / (2 * beta)
    return ((chosen / beta - middle).square() + (rejected / beta + middle).square()).mean()


def aot(policy: Rewards, reference: Rewards) -> Loss:
    """Return DPO between the k-th largest margin of the policy and the k-th largest one of the reference model.

    AOT (Melnyk et al. 2024). policy, reference: beta * (log p of the chosen - log p of the rejected answer).
    """
    return dpo(policy.sort().values, reference.sort().values)


def aot_unpaired(chosen: Rewards, rejected: Rewards) -> Loss:
    """Return DPO between the k-th highest chosen and the k-th highest rejected reward of the batch.

    AOT for answers that are not in pairs (Melnyk et al. 2024).
    """
    return dpo(chosen.sort().values, rejected.sort().values)


def bco(chosen: Rewards, rejected: Rewards, reward_baseline: Float[Tensor, ""] | float) -> Loss:
    """Return the binary classification loss of chosen as good and rejected as bad (BCO, Jung et al. 2024).

    reward_baseline: decision threshold delta, a running mean of rewards.
    """
    return -(F.logsigmoid(chosen - reward_baseline) + F.logsigmoid(reward_baseline - rejected)).mean()


def orpo(chosen: Rewards, rejected: Rewards) -> Loss:
    """Return -log sigmoid of the log odds ratio (ORPO, Hong et al. 2024, equation 7); needs no reference model.

    chosen, rejected: mean log-probability per token, below 0.
    """
    # log odds = log p - log(1 - p).
    odds = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
    return -F.logsigmoid(odds).mean()


def preference_loss(
    kind: PreferenceLoss,
    log_probs: Float[Tensor, "pairs 2"],
    reference: Float[Tensor, "pairs 2"],
    lengths: Float[Tensor, "pairs 2"],
    beta: float,
    smoothing: float = 0.0,
) -> Loss:
    """Return the loss of pairs by its name.

    log_probs, reference: sums of log p over the tokens of the chosen and the rejected answer, by policy and reference
    model. lengths: their tokens, by which IPO and ORPO divide. AOT sorts those of all processes.
    """
    if kind == "orpo":
        mean = log_probs / lengths
        return beta * orpo(mean[:, 0], mean[:, 1])
    rewards = beta * (log_probs - reference)
    if kind == "ipo":
        rewards = rewards / lengths
    if kind == "aot":
        margins = (beta * (one[:, 0] - one[:, 1]) for one in (log_probs, reference))
        return aot(*map(all_gather_with_grad, margins))
    if kind == "aot_unpaired":
        rewards = all_gather_with_grad(rewards)
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    match kind:
        case "dpo":
            return dpo(chosen, rejected, smoothing)
        case "robust_dpo":
            return robust_dpo(chosen, rejected, smoothing)
        case "hinge":
            return hinge(chosen, rejected)
        case "ipo":
            return ipo(chosen, rejected, beta)
        case "sppo":
            return sppo(chosen, rejected, beta)
        case "aot_unpaired":
            return aot_unpaired(chosen, rejected)


class RewardShift(nn.Module):
    """BCO's reward shift delta: the mean of all rewards so far, in the state dict (MPO, section 3.3)."""

    def __init__(self) -> None:
        super().__init__()
        self.delta: Tensor
        self.count: Tensor
        self.register_buffer("delta", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0.0))

    @torch.no_grad()
    def forward(self, rewards: Float[Tensor, ...]) -> Float[Tensor, ""]:
        """Add the rewards of all processes, and return the mean."""
        gathered = all_gather(rewards.detach().flatten())
        self.count += len(gathered)
        self.delta += (gathered.mean() - self.delta) * len(gathered) / self.count
        return self.delta.clone()


def _log_of_rest(log_probability: Tensor) -> Tensor:
    """Return log(1 - p), with p clamped below 1."""
    return torch.log(-torch.expm1(log_probability.clamp(max=-1e-6)))
