"""Flow map f_{s,t}: a denoiser that is told the time s that it goes to, and samplers in few steps.

Flow matching, consistency models and inductive moment matching (IMM) train it; they differ in the loss.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.conditions import ConditionBatch
from polymodal.errors import UserError
from polymodal.layers.diffusion_transformer import TimeEmbedding
from polymodal.objectives.diffusion import (
    SIGMA_DATA,
    FlowMapType,
    NoiseSchedule,
    Times,
    add_noise,
    alpha_sigma,
    expand_dims_like,
    flow_map_coefficients,
)

Images = Float[Tensor, "batch channels size size"]
Condition = Float[Tensor, "batch width"]
TimeInput = Literal["identity", "stride", "none"]


class FlowMap(nn.Module):
    """Denoiser of images with a condition and two times.

    backbone: takes images and the sum of all embeddings. condition: a `ConditionEncoder`. temb_type: second time input:
    s, t - s, or none (a flow, which knows no destination). Raises UserError for an Euler step of another noise schedule
    than flow matching's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        condition: nn.Module,
        width: int,
        f_type: FlowMapType,
        temb_type: TimeInput,
        noise_schedule: NoiseSchedule,
    ):
        super().__init__()
        if f_type == "euler_fm" and noise_schedule != "fm":
            raise UserError("--f-type euler_fm goes with --noise-schedule fm.")
        self.f_type, self.temb_type, self.noise_schedule = f_type, temb_type, noise_schedule
        self.backbone, self.condition = backbone, condition
        self.embed_t = TimeEmbedding(width)
        self.embed_s = TimeEmbedding(width) if temb_type != "none" else None

    def network(self, x: Images, s: Times, t: Times, condition: Condition) -> Images:
        """Return G(c_in x_t, c_noise s, c_noise t), the output of the backbone."""
        alpha, sigma = alpha_sigma(t, self.noise_schedule)
        c_in = (alpha**2 + sigma**2).rsqrt() / SIGMA_DATA
        embedding = self.embed_t(t) + condition
        if self.embed_s is not None:
            embedding = embedding + self.embed_s(t - s if self.temb_type == "stride" else s)
        return self.backbone(expand_dims_like(c_in, x) * x, embedding)

    def forward(self, x: Images, s: Times, t: Times, condition: Condition, cfg_scale: float = 1.0) -> Images:
        """Return f_{s,t}(x_t), an image at time s. cfg_scale: 1 is without classifier-free guidance."""
        output = self.network(x, s, t, condition)
        if cfg_scale != 1.0:
            unconditional = self.network(x, s, t, self.condition({}).expand_as(condition))
            output = unconditional + cfg_scale * (output - unconditional)
        c_skip, c_out = flow_map_coefficients(s, t, self.f_type, self.noise_schedule)
        return expand_dims_like(c_skip, x) * x + expand_dims_like(c_out, x) * output

    def sample(
        self,
        noise: Images,
        times: Float[Tensor, " times"],
        condition: Condition,
        cfg_scale: float = 1.0,
        restart: bool = False,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Take noise through decreasing times.

        restart: go to the last time in every step, and by fresh noise to the next (multistep consistency sampling),
        instead of from time to time (pushforward).
        """
        x = noise
        for now, following in itertools.pairwise(times):
            t, s, end = (time.to(x.dtype).expand(len(x)) for time in (now, following, times[-1]))
            x = self(x, end if restart else s, t, condition, cfg_scale)
            if restart and following > times[-1]:
                fresh = SIGMA_DATA * torch.randn(x.shape, generator=generator).to(x)
                x = add_noise(x, fresh, s, self.noise_schedule)
        return x

    @torch.no_grad()
    def generate(
        self,
        batch: ConditionBatch,
        shape: tuple[int, int, int],
        times: Float[Tensor, " times"],
        cfg_scale: float = 1.0,
        restart: bool = False,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Return an image for each condition of a batch, or as many as its `num_images`, normalized.

        shape: of an image. Further arguments are those of `sample`.
        """
        condition = self.condition(batch)
        count = len(condition) if condition.ndim > 1 else int(batch["num_images"])
        noise = SIGMA_DATA * torch.randn((count, *shape), generator=generator)
        x, condition = noise.to(condition.device), condition.expand(count, -1)
        return self.sample(x, times.to(x), condition, cfg_scale, restart, generator) / SIGMA_DATA
