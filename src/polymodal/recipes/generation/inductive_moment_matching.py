"""IMM: inductive moment matching, image generation in one or few steps, trained without a teacher.

The network f_{s,t} is told where to go, s, as well as where it is, t. Samples that it takes from t to s must be
distributed as those that it takes from r, a little before t, to s; as r reaches s these are noised data, so that steps
of any length are learned by induction, without a teacher and without simulation (sections 4 to 6 of the method's paper,
arXiv 2503.07565). Differs from the paper in: DiT in place of DDPM++ for CIFAR-10; AdamW in place of RAdam; no dropout;
no latents (ImageNet-256). With the default `mapping_k` of 8, which suits short training, r equals s for half of the
samples: they are matched with noised data directly, without induction.

Terms: f_{s,t} = FlowMap, c_skip and c_out = flow_map_coefficients, r(s,t) = IMM.mapping, MMD = laplace_mmd, w(s,t)
= loss_weight, M = num_particles, CFG = cfg_scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.conditions import (
    ConditionBatch,
    GenerationBatch,
    condition_columns,
    condition_sizes,
    generation_batch,
)
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.condition import ConditionEncoder
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.diffusion_transformer import DiffusionTransformer
from polymodal.modalities.image_augmentation import NONE, ImageAugmentation
from polymodal.models.flow_map import FlowMap, Images, TimeInput
from polymodal.objectives.diffusion import (
    SIGMA_DATA,
    FlowMapType,
    NoiseSchedule,
    TimeDistribution,
    Times,
    add_noise,
    check_sampling_times,
    ddim_step,
    eta_from_time,
    flow_map_coefficients,
    flow_matching_loss,
    loss_weight,
    sample_times,
    sampling_times,
    time_from_eta,
)
from polymodal.objectives.mmd import laplace_mmd
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import ADAM, OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper

paper = Paper(
    slug="inductive-moment-matching",
    title="Ideas in Inference-time Scaling can Benefit Generative Pre-training Algorithms",
    year=2025,
    arxiv="2503.07154",
    modalities=("image", "category"),
    code="lumalabs/imm@c9473e9395910d3dd03ffffb6b0a8b4fb760c3a1",
)

MIN_GAP = 1e-4  # between t and r
MIN_COEFFICIENT = 1e-3  # of |c_out(s, t)|, which is 0 at s = t


class IMM(nn.Module):
    """Takes images from one noise level to a lower one; generates by doing so from pure noise."""

    def __init__(self, recipe: Recipe, num_classes: int, vocab_size: int = 0):
        """Build the method. num_classes, vocab_size: of the conditions, 0 where there are none."""
        super().__init__()
        self.recipe, self.unconditional = recipe, not (num_classes or vocab_size)
        self.group_size = recipe.num_particles if recipe.objective == "mmd" else 1
        self.flow_map = FlowMap(
            DiffusionTransformer(recipe.image_size, recipe.patch_size, recipe.width, recipe.depth, recipe.num_heads),
            ConditionEncoder(recipe.width, recipe.text, num_classes, vocab_size),
            recipe.width,
            recipe.f_type,
            recipe.temb_type,
            recipe.noise_schedule,
        )

    def losses(self, batch: GenerationBatch) -> dict[str, Tensor]:
        """Compute mmd, consistency or flow, as the recipe says."""
        recipe, data = self.recipe, SIGMA_DATA * batch["image"]
        noise = SIGMA_DATA * torch.randn_like(data)
        condition = self.flow_map.condition(batch).expand(len(data), -1)
        num_particles = min(recipe.num_particles, len(data)) if recipe.objective == "mmd" else 1
        groups = len(data) // num_particles
        t = sample_times(
            groups, recipe.t_min, recipe.t_max, recipe.time_distribution, recipe.noise_schedule, data.device
        )
        s = recipe.t_min + (t - recipe.t_min) * torch.rand(groups, device=data.device)
        if recipe.objective == "flow":
            velocity = self.flow_map.network(add_noise(data, noise, t), s, t, condition)
            return {"flow": flow_matching_loss(SIGMA_DATA * velocity, data, noise)}
        r = self.mapping(s, t)
        weight = loss_weight(t, recipe.noise_schedule, recipe.loss_weight_b, recipe.loss_weight_a)
        # Equation 12: the kernel's weight is 1 / |c_out(s, t)|, as f moves x by c_out times the network's output.
        c_out = flow_map_coefficients(s, t, recipe.f_type, recipe.noise_schedule)[1]
        kernel_weight = 1 / c_out.abs().clamp(min=MIN_COEFFICIENT)

        # All particles of a group share s, r and t; x_r has the data and the noise of x_t (section 4.4).
        rows = slice(0, groups * num_particles)
        data, noise, condition = data[rows], noise[rows], condition[rows]
        of_s, of_r, of_t = (times.repeat_interleave(num_particles) for times in (s, r, t))
        x_t = add_noise(data, noise, of_t, recipe.noise_schedule)
        x_r = ddim_step(x_t, data, of_r, of_t, recipe.noise_schedule)
        y_t = self.flow_map(x_t, of_s, of_t, condition)
        with torch.no_grad():
            y_r = self.flow_map(x_r, of_s, of_r, condition)
        y_t, y_r = (y.flatten(1).unflatten(0, (groups, num_particles)) for y in (y_t, y_r))
        if recipe.objective == "consistency":
            error = (y_t - y_r).square().mean((1, 2))
            return {"consistency": (weight * kernel_weight * error).mean()}
        return {"mmd": (weight * laplace_mmd(y_t, y_r, kernel_weight)).mean()}

    def mapping(self, s: Times, t: Times) -> Times:
        """Return r(s, t) = max(s, eta^-1(eta_t - (eta_max - eta_min) / 2^k)), at least a gap below t or s itself."""
        recipe, schedule = self.recipe, self.recipe.noise_schedule
        eta_min, eta_max = eta_from_time(torch.tensor([recipe.t_min, recipe.t_max]), schedule).tolist()
        eta = eta_from_time(t, schedule) - (eta_max - eta_min) / 2**recipe.mapping_k
        r = time_from_eta(eta.clamp(min=0.0), schedule).to(t.dtype)
        return torch.maximum(torch.minimum(r, t - MIN_GAP), s)

    def generate_images(self, batch: ConditionBatch, steps: int, generator: torch.Generator | None = None) -> Images:
        """Generate an image for each condition, normalized as the processor's, in `steps` steps."""
        recipe = self.recipe
        times = sampling_times(
            recipe.t_max, recipe.t_min, steps, recipe.noise_schedule, recipe.discretization, recipe.mid_nt
        )
        shape, restart = (3, recipe.image_size, recipe.image_size), recipe.sampler == "restart"
        return self.flow_map.generate(batch, shape, times, recipe.cfg_scale, restart, generator)


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 128
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0, betas=(0.9, 0.999), ema_decay=0.99)
    image_size: PositiveInt = 16
    """Image side in pixels."""
    patch_size: PositiveInt = 2
    """Patch side in pixels."""
    width: PositiveInt = 96
    """Embedding width of tokens."""
    depth: NonNegativeInt = 4
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    objective: Literal["mmd", "consistency", "flow"] = "mmd"
    """mmd: the paper's. consistency: one particle, squared distance. flow: flow matching, sampled by Euler steps."""
    num_particles: PositiveInt = 4
    """Particles M: images of a group, whose distribution is compared; they share their times (section 5)."""
    f_type: FlowMapType = "euler_fm"
    """Parameterization: what the network predicts is a velocity, EDM's mixture, or the data (section 5)."""
    temb_type: TimeInput = "identity"
    """Second time input of the network: s, t - s, or none, as flow matching has it."""
    noise_schedule: NoiseSchedule = "fm"
    """How data become noise; flow and euler_fm take fm only."""
    time_distribution: TimeDistribution = "uniform"
    """Of t in training; log_normal is that of eta = sigma / alpha, with mean -1.1 and standard deviation 2."""
    mapping_k: NonNegativeInt = 8
    """k of r(s,t): r is 1/2^k of the largest eta before t; 12 to 15 in the paper. With 8, r = s half of the time."""
    t_min: UnitInterval = 0.006
    """Smallest time epsilon, the end of sampling."""
    t_max: UnitInterval = 0.994
    """Largest time T, the start of sampling."""
    loss_weight_b: float = 5.0
    """b of equation 13: log signal-to-noise ratio at which the loss weight falls off."""
    loss_weight_a: float = 1.0
    """a of equation 13, the power of alpha: 1 for one step, 2 for several."""
    conditions: tuple[Literal["label", "text"], ...] = ("label", "text")
    """What images are generated from, as far as the corpus has it; none: unconditional generation."""
    text: TextEncoderConfig = TextEncoderConfig()
    """Text encoder of the conditions."""
    cond_drop_prob: UnitInterval = 0.1
    """Probability that an example trains without its conditions, for classifier-free guidance."""
    cfg_scale: float = 1.0
    """Scale of classifier-free guidance in sampling; other values than 1 run the network twice a step."""
    sampler: Literal["pushforward", "restart"] = "pushforward"
    """From time to time directly, or to data and by fresh noise to the next time."""
    discretization: Literal["uniform", "edm"] = "uniform"
    """Sampling times: equally spaced, or by EDM's schedule with rho = 7."""
    mid_nt: tuple[float, ...] = ()
    """Decreasing etas of the times between first and last, for sampling in one step more than there are."""
    augmentation: ImageAugmentation = NONE

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"image_size": 32, "patch_size": 4, "width": 192, "depth": 6, "num_heads": 4},
        "base": {"image_size": 32, "patch_size": 2, "width": 384, "depth": 12, "num_heads": 6, "batch_size": 256},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "mmd" and self.batch_size % self.num_particles:
            raise UserError(f"A batch of {self.batch_size} has no whole groups of {self.num_particles} particles.")

    def columns(self) -> Declared:
        return {"image": ImageColumn(self.image_size), **condition_columns(self.conditions, self.text)}

    def build(self, processor: Processor) -> IMM:
        check_sampling_times(self.t_max, self.t_min, self.noise_schedule, self.mid_nt)
        if self.objective != "flow" and self.t_max == 1:
            raise UserError("--t-max is below 1, where sigma / alpha is infinite and r(s,t) is always s.")
        if self.objective == "flow" and self.f_type != "euler_fm":
            raise UserError("Flow matching goes with --f-type euler_fm.")
        return IMM(self, *condition_sizes(processor))

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> GenerationBatch:
        """Collate images, their conditions, and which of these are dropped."""
        return generation_batch(examples, processor, self.augmentation, self.cond_drop_prob, example_rng)

    @classmethod
    def tiny(cls) -> Recipe:
        text = TextEncoderConfig(300, context_length=24, width=16, depth=1, num_heads=2)
        return cls(text=text, image_size=8, width=16, depth=1, num_heads=2, num_particles=2, batch_size=4)

    @classmethod
    def paper(cls) -> Recipe:
        """Unconditional CIFAR-10 (released configuration; table 6 of the method's paper), with DiT-B for the U-Net."""
        return cls(
            batch_size=4096,
            optimizer=replace(ADAM, learning_rate=1e-4, ema_decay=0.9999),
            image_size=32,
            width=768,
            depth=12,
            num_heads=12,
            f_type="simple_edm",
            mapping_k=15,
            conditions=(),
            mid_nt=(1.4,),
        )
