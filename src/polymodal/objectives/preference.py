"""Losses that tell a better answer from a worse one.

A reward is beta * log(pi(y|x) / pi_0(y|x)): how much likelier than its reference a model finds an answer. Every loss is
the mean over pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Rewards = Float[Tensor, " pairs"]
Loss = Float[Tensor, ""]


def dpo(chosen: Rewards, rejected: Rewards, smoothing: float = 0.0) -> Loss:
    """-log of the probability that the chosen answer is the better one (Rafailov et al. 2023, equation 7).

    smoothing: the share of pairs that are thought to be the wrong way round, below 0.5 (cDPO, Mitchell 2023).
    """
    margin = chosen - rejected
    return -((1 - smoothing) * F.logsigmoid(margin) + smoothing * F.logsigmoid(-margin)).mean()


def robust_dpo(chosen: Rewards, rejected: Rewards, smoothing: float) -> Loss:
    """DPO that is right on average where a share `smoothing` of pairs is the wrong way round (Chowdhury et al. 2024,
    equation 12)."""
    margin = chosen - rejected
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return (((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)).mean()


def hinge(chosen: Rewards, rejected: Rewards) -> Loss:
    """How far a margin stays below 1 (RSO, Liu et al. 2024; SLiC-HF, Zhao et al. 2023)."""
    return (1 - (chosen - rejected)).relu().mean()


def ipo(chosen: Rewards, rejected: Rewards, beta: float) -> Loss:
    """Squared distance of the margin of log-ratios from 1 / (2 beta) (Azar et al. 2023, equation 17)."""
    return (((chosen - rejected) / beta - 1 / (2 * beta)).square()).mean()


def sppo(chosen: Rewards, rejected: Rewards, beta: float) -> Loss:
    """Each log-ratio towards 1 / (2 beta), the rejected one's towards its negative (Wu et al. 2024, equation 4.7, with
    certain preferences)."""
    middle = 1 / (2 * beta)
    return ((chosen / beta - middle).square() + (rejected / beta + middle).square()).mean()


def aot(chosen: Rewards, rejected: Rewards) -> Loss:
    """DPO between the k-th best chosen and the k-th best rejected answer of the batch, whatever they answer (Melnyk et
    al. 2024, unpaired)."""
    return dpo(chosen.sort().values, rejected.sort().values)


def bco(chosen: Rewards, rejected: Rewards, reward_baseline: Float[Tensor, ""] | float) -> Loss:
    """-log of the probabilities that the chosen answer is good and the rejected one is not (Jung et al. 2024).

    reward_baseline: the reward of an answer that is neither.
    """
    return -(F.logsigmoid(chosen - reward_baseline) + F.logsigmoid(reward_baseline - rejected)).mean()


def orpo(chosen: Rewards, rejected: Rewards) -> Loss:
    """-log sigmoid of the log odds ratio (Hong et al. 2024, equation 7); needs no reference.

    chosen, rejected: the mean log-probability a token, below 0.
    """
    odds = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
    return -F.logsigmoid(odds).mean()


def _log_of_rest(log_probability: Tensor) -> Tensor:
    """log(1 - p), where p is not 1."""
    return torch.log(-torch.expm1(log_probability.clamp(max=-1e-6)))
