"""Noise schedules of diffusion, the DDIM step, flow maps and their sampling times, and the flow-matching loss.

Time runs from 0 (data) to 1 (noise): x_t = alpha_t x + sigma_t noise.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.errors import UserError

Times = Float[Tensor, " batch"]
Values = Float[Tensor, "batch *shape"]
NoiseSchedule = Literal["fm", "vp_cosine"]
FlowMapType = Literal["euler_fm", "simple_edm", "identity"]
TimeDistribution = Literal["uniform", "log_normal"]
LOG_NORMAL = (-1.1, 2.0)  # mean and standard deviation of log eta (IMM, Zhou et al. 2025, released code)
SIGMA_DATA = 0.5  # standard deviation of data and of noise (EDM, Karras et al. 2022)
EDM_RHO = 7  # EDM, table 1


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


def eta_from_time(time: Times, noise_schedule: NoiseSchedule) -> Times:
    """Return eta = sigma / alpha, in double precision, as it is large near time 1."""
    alpha, sigma = alpha_sigma(time.double(), noise_schedule)
    return sigma / alpha


def sample_times(
    count: int,
    t_min: float,
    t_max: float,
    distribution: TimeDistribution,
    noise_schedule: NoiseSchedule,
    device: torch.device,
) -> Times:
    """Sample t from U(t_min, t_max), or eta from a log-normal distribution (EDM, Karras et al. 2022, table 1)."""
    if distribution == "uniform":
        return t_min + (t_max - t_min) * torch.rand(count, device=device)
    mean, std = LOG_NORMAL
    eta = (mean + std * torch.randn(count, device=device)).exp()
    return time_from_eta(eta, noise_schedule).clamp(t_min, t_max)


def loss_weight(time: Times, noise_schedule: NoiseSchedule, b: float, a: float) -> Times:
    """Return the weight of a time (IMM, Zhou et al. 2025, equation 13), lambda_t being the log signal-to-noise ratio.

    0.5 sigmoid(b - lambda_t) (-d lambda_t / dt) alpha_t^a / (alpha_t^2 + sigma_t^2): that of the evidence lower bound
    with sigmoid weighting (Kingma and Gao 2023), times a power of alpha.
    """
    alpha, sigma = alpha_sigma(time, noise_schedule)
    log_snr = 2 * (alpha / sigma).log()
    # -d lambda_t / dt: 2 / (t (1 - t)) for fm, and 2 pi / sin(pi t) for vp_cosine.
    slope = 2 / (time * (1 - time)) if noise_schedule == "fm" else 2 * math.pi / torch.sin(math.pi * time)
    return 0.5 * torch.sigmoid(b - log_snr) * slope * alpha**a / (alpha**2 + sigma**2)


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


def flow_map_coefficients(
    to: Times, time: Times, f_type: FlowMapType, noise_schedule: NoiseSchedule
) -> tuple[Times, Times]:
    """Return c_skip and c_out of the flow map f_{s,t}(x_t) = c_skip x_t + c_out G(x_t, s, t) with s = `to`, t = `time`.

    identity: G predicts the data, and f is its DDIM step. simple_edm: G is EDM's preconditioned network. euler_fm: G is
    a velocity, and f is an Euler step (IMM, Zhou et al. 2025, section 5). All have f_{t,t}(x) = x.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(when, noise_schedule) for when in (to, time))
    if f_type == "euler_fm":
        return torch.ones_like(time), -SIGMA_DATA * (time - to)
    if f_type == "identity":
        return sigma_s / sigma_t, alpha_s - alpha_t * sigma_s / sigma_t
    variance = alpha_t**2 + sigma_t**2
    c_skip = (alpha_t * alpha_s + sigma_t * sigma_s) / variance
    return c_skip, -SIGMA_DATA * (alpha_s * sigma_t - alpha_t * sigma_s) * variance.rsqrt()


def sampling_times(
    t_max: float,
    t_min: float,
    steps: int,
    noise_schedule: NoiseSchedule = "fm",
    discretization: Literal["uniform", "edm"] = "uniform",
    mid_nt: tuple[float, ...] = (),
) -> Float[Tensor, " times"]:
    """Return the steps + 1 decreasing times of a sampler, in double precision.

    uniform: equally spaced. edm: eta = sigma / alpha to the power of 1/7 is equally spaced (EDM, equation 5). mid_nt:
    etas between the first and the last, which are used if they make as many steps.
    """
    ends = torch.tensor([t_max, t_min], dtype=torch.float64)
    if mid_nt and steps == len(mid_nt) + 1:
        return torch.cat([ends[:1], time_from_eta(torch.tensor(mid_nt).double(), noise_schedule), ends[1:]])
    if discretization == "uniform":
        return torch.linspace(t_max, t_min, steps + 1, dtype=torch.float64)
    first, last = (eta_from_time(ends, noise_schedule) ** (1 / EDM_RHO)).tolist()
    return time_from_eta(torch.linspace(first, last, steps + 1, dtype=torch.float64) ** EDM_RHO, noise_schedule)


def check_sampling_times(
    t_max: float, t_min: float, noise_schedule: NoiseSchedule, mid_nt: tuple[float, ...] = ()
) -> None:
    """Raise UserError for times of a sampler that do not decrease."""
    if t_min >= t_max:
        raise UserError("--t-min, the end of sampling, is below --t-max.")
    with torch.device("cpu"):  # also where a model is built on the meta device
        times = sampling_times(t_max, t_min, len(mid_nt) + 1, noise_schedule, mid_nt=mid_nt)
    if (times.diff() >= 0).any():
        raise UserError("--mid-nt are decreasing etas, below that of --t-max and above that of --t-min.")


def flow_matching_loss(velocity: Values, data: Values, noise: Values) -> Float[Tensor, ""]:
    """Return the mean squared error of the velocity against noise - data (flow matching, Lipman et al. 2023, equation
    23)."""
    return (velocity - (noise - data)).square().mean()
