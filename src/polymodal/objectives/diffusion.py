"""Noise schedules of diffusion, the DDIM step, and the flow-matching loss.

Time runs from 0 (data) to 1 (noise): x_t = alpha_t x + sigma_t noise.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, " batch"]
Values = Float[Tensor, "batch *shape"]
NoiseSchedule = Literal["fm", "vp_cosine"]


def alpha_sigma(time: Times, noise_schedule: NoiseSchedule) -> tuple[Times, Times]:
    """Return alpha_t and sigma_t.

    fm: 1 - t and t (flow matching with optimal transport, Lipman et al. 2023); vp_cosine: cos(pi t / 2) and sin(pi t /
    2) (variance preserving).
    """
    if noise_schedule == "fm":
        return 1 - time, time
    return torch.cos(0.5 * math.pi * time), torch.sin(0.5 * math.pi * time)


def time_from_eta(eta: Times, noise_schedule: NoiseSchedule) -> Times:
    """Return the time at which sigma / alpha equals eta."""
    return eta / (1 + eta) if noise_schedule == "fm" else torch.atan(eta) * 2 / math.pi


def expand_dims_like(time: Times, like: Values) -> Tensor:
    """Append axes of length one to a time per example, for broadcasting against `like`."""
    return time.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def add_noise(data: Values, noise: Values, time: Times, noise_schedule: NoiseSchedule = "fm") -> Values:
    """Return x_t = alpha_t data + sigma_t noise."""
    alpha, sigma = (expand_dims_like(weight, data) for weight in alpha_sigma(time, noise_schedule))
    return alpha * data + sigma * noise


def ddim_step(x: Values, data: Values, to: Times, time: Times, noise_schedule: NoiseSchedule = "fm") -> Values:
    """Move x from `time` to the earlier time `to`, given the predicted data (DDIM, Song et al. 2021, equation 12).

    With the true data, the result is add_noise of that data at `to` with the same noise.
    """
    alpha_s, sigma_s = alpha_sigma(to, noise_schedule)
    alpha_t, sigma_t = alpha_sigma(time, noise_schedule)
    # x_s = alpha_s data + sigma_s noise with noise = (x_t - alpha_t data) / sigma_t.
    ratio = sigma_s / sigma_t
    return expand_dims_like(alpha_s - alpha_t * ratio, x) * data + expand_dims_like(ratio, x) * x


def flow_matching_loss(velocity: Values, data: Values, noise: Values) -> Float[Tensor, ""]:
    """Return the mean squared error of the velocity against noise - data (flow matching, Lipman et al. 2023, equation
    23)."""
    return (velocity - (noise - data)).square().mean()
