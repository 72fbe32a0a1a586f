"""Preference optimization losses over pairs of a chosen and a rejected answer (TRL's `loss_type` names).

The implicit reward is beta * log(pi(y|x) / pi_ref(y|x)) for policy pi and reference pi_ref. Every loss is the mean over
pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

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


def aot(chosen: Rewards, rejected: Rewards) -> Loss:
    """Return DPO between the k-th highest chosen and the k-th highest rejected reward of the batch.

    AOT, unpaired (Melnyk et al. 2024).
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


def _log_of_rest(log_probability: Tensor) -> Tensor:
    """Return log(1 - p), with p clamped below 1."""
    return torch.log(-torch.expm1(log_probability.clamp(max=-1e-6)))
