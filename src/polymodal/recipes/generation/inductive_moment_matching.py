"""IMM: inductive moment matching, image generation in one or few steps, trained without a teacher.

It is told where to go as well as where it is. Samples that it brings from time t to s must be distributed as those that
it brings from r, a little before t, to s; as r nears s these become noised data, so that all jumps are learned by
induction, without a teacher and without simulation (sections 4 to 6 of the method's paper, arXiv 2503.07565).

Terms: MMD of samples at s from t and from r = losses.mmd.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.conditions import ConditionBatch, conditions
from polymodal.data.processor import Declared, Optional, Processor
from polymodal.encoders.condition import ConditionEncoder
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.diffusion_transformer import DiffusionTransformer, TimeEmbedding
from polymodal.modalities import Text
from polymodal.modalities.image_augmentation import NONE, ImageAugmentation, augment
from polymodal.objectives.diffusion import (
    NoiseSchedule,
    Times,
    add_noise,
    alpha_sigma,
    ddim_step,
    expand_dims_like,
    flow_matching_loss,
    time_from_eta,
)
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper

paper = Paper(
    slug="inductive-moment-matching",
    title="Ideas in Inference-time Scaling can Benefit Generative Pre-training Algorithms",
    year=2025,
    arxiv="2503.07154",
    modalities=("image", "category"),
)

Objective = Literal["mmd", "consistency", "flow"]
Parameterization = Literal["euler", "edm", "identity"]
Images = Float[Tensor, "batch channels size size"]
SIGMA = 0.5  # standard deviation of data and of noise
SMALLEST_GAP = 1e-4  # between two times


def laplace_discrepancy(
    a: Float[Tensor, "groups particles dim"], b: Float[Tensor, "groups particles dim"], weight: Float[Tensor, " groups"]
) -> Float[Tensor, " groups"]:
    """Squared maximum mean discrepancy of two sets of particles under exp(-weight * distance / dim) (equation 12)."""

    def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
        distance = (x[:, :, None] - y[:, None, :]).square().sum(-1).clamp(min=1e-16).sqrt()
        return torch.exp(-weight[:, None, None] * distance / x.shape[-1]).mean((1, 2))

    return mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)


def coefficient(to: Times, time: Times, parameterization: Parameterization, noise_schedule: NoiseSchedule) -> Times:
    """How much the network's output counts in a jump, without its sign."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(to, noise_schedule), alpha_sigma(time, noise_schedule)
    if parameterization == "euler":
        return SIGMA * (time - to)
    if parameterization == "identity":
        return alpha_s - alpha_t * sigma_s / sigma_t
    return SIGMA * (alpha_s * sigma_t - alpha_t * sigma_s) / (alpha_t**2 + sigma_t**2).sqrt()


def loss_weight(time: Times, noise_schedule: NoiseSchedule, b: float, a: float) -> Times:
    """The weight of a time: as the evidence bound has it, times powers of alpha (equation 13)."""
    alpha, sigma = alpha_sigma(time, noise_schedule)
    log_ratio = 2 * (alpha / sigma).log()
    slope = 2 / (time * (1 - time)) if noise_schedule == "fm" else 2 * math.pi / torch.sin(math.pi * time)
    return 0.5 * torch.sigmoid(b - log_ratio) * slope * alpha**a / (alpha**2 + sigma**2)


class GenerationBatch(ConditionBatch):
    """Normalized images and the conditions that they are generated from."""

    image: Float[Tensor, "batch 3 size size"]


class JumpNetwork(nn.Module):
    """Takes images from one noise level to a lower one; generates by doing so from pure noise."""

    def __init__(self, recipe: Recipe, classes: int, vocabulary: int = 0):
        """classes, vocabulary: of the labels and texts that images are generated from, 0 where there are none."""
        super().__init__()
        self.recipe = recipe
        self.backbone = DiffusionTransformer(
            recipe.image_size, recipe.patch_size, recipe.width, recipe.depth, recipe.num_heads
        )
        self.from_time = TimeEmbedding(recipe.width)
        self.to_time = TimeEmbedding(recipe.width)
        self.condition = ConditionEncoder(recipe.width, recipe.text, classes, vocabulary)

    def jump(self, x: Images, to: Times, time: Times, condition: Tensor, cfg_scale: float = 1.0) -> Images:
        """x, which is at `time`, at `to`. cfg_scale: weight of what the condition adds, 1 as it is."""
        recipe = self.recipe
        output = self._output(x, to, time, condition)
        if cfg_scale != 1.0:
            without = self._output(x, to, time, self.condition({}).expand_as(condition))
            output = cfg_scale * output + (1 - cfg_scale) * without
        if recipe.parameterization == "identity":
            return ddim_step(x, output, to, time, recipe.noise_schedule)
        share = expand_dims_like(coefficient(to, time, recipe.parameterization, recipe.noise_schedule), x)
        if recipe.parameterization == "euler":
            return x - share * output
        (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(when, recipe.noise_schedule) for when in (to, time))
        kept = (alpha_t * alpha_s + sigma_t * sigma_s) / (alpha_t**2 + sigma_t**2)
        return expand_dims_like(kept, x) * x - share * output

    def _output(self, x: Images, to: Times, time: Times, condition: Tensor) -> Images:
        alpha, sigma = alpha_sigma(time, self.recipe.noise_schedule)
        if self.recipe.objective == "flow":
            to = time  # a flow knows no destination
        scaled = x / expand_dims_like(SIGMA * (alpha**2 + sigma**2).sqrt(), x)
        return self.backbone(scaled, self.from_time(time) + self.to_time(to) + condition)

    def losses(self, batch: GenerationBatch) -> dict[str, Tensor]:
        """mmd, consistency or flow, as the recipe says."""
        recipe, data = self.recipe, SIGMA * batch["image"]
        noise = SIGMA * torch.randn_like(data)
        condition = self.condition(batch)
        particles = recipe.num_particles if recipe.objective == "mmd" else 1
        groups = len(data) // particles
        low, high = recipe.t_min, recipe.t_max
        time = low + (high - low) * torch.rand(groups, device=data.device).clamp(min=0.01)
        if recipe.objective == "flow":
            x = add_noise(data, noise, time)
            return {"flow": flow_matching_loss(SIGMA * self._output(x, time, time, condition), data, noise)}
        to = low + (time - low) * torch.rand(groups, device=data.device)
        middle = torch.maximum(to, self.before(time))
        weight = loss_weight(time, recipe.noise_schedule, recipe.loss_weight_b, recipe.loss_weight_a)
        kernel = 1 / coefficient(to, time, recipe.parameterization, recipe.noise_schedule).clamp(min=1e-3)

        every = [when.repeat_interleave(particles) for when in (to, middle, time)]
        rows = slice(0, groups * particles)
        data, noise, condition = data[rows], noise[rows], condition[rows]
        x = add_noise(data, noise, every[2], recipe.noise_schedule)
        nearer = ddim_step(x, data, every[1], every[2], recipe.noise_schedule)
        ours = self.jump(x, every[0], every[2], condition)
        with torch.no_grad():
            target = self.jump(nearer, every[0], every[1], condition)
        ours, target = (points.flatten(1).unflatten(0, (groups, particles)) for points in (ours, target))
        if recipe.objective == "consistency":
            error = (ours - target).square().mean((1, 2))
            return {"consistency": (weight * kernel * error).mean()}
        return {"mmd": (weight * laplace_discrepancy(ours, target, kernel)).mean()}

    def before(self, time: Times) -> Times:
        """The time from which a jump is learned: a fixed step of noise over data less, and always less."""
        recipe = self.recipe

        def noise_over_data(when: Tensor) -> Tensor:
            alpha, sigma = alpha_sigma(when.double(), recipe.noise_schedule)
            return sigma / alpha

        least, most = noise_over_data(torch.tensor([recipe.t_min, recipe.t_max]))
        eta = noise_over_data(time) - (most - least) / 2**recipe.mapping_k
        earlier = time_from_eta(eta.clamp(min=0.0), recipe.noise_schedule).to(time.dtype)
        return torch.minimum(earlier, time - SMALLEST_GAP).clamp(min=recipe.t_min)

    @torch.no_grad()
    def generate_images(self, batch: ConditionBatch, steps: int, generator: torch.Generator | None = None) -> Images:
        """An image for each label or text, normalised as the processor's, in `steps` jumps at equally spaced times."""
        recipe, condition = self.recipe, self.condition(batch)
        count, device = len(condition), condition.device
        shape = (count, 3, recipe.image_size, recipe.image_size)
        noise = torch.randn(shape, generator=generator).to(device)
        times = torch.linspace(recipe.t_max, recipe.t_min, steps + 1, device=device)
        x = SIGMA * noise
        for now, then in itertools.pairwise(times):
            start, end = now.expand(count), then.expand(count)
            if recipe.sampler == "pushforward":
                x = self.jump(x, end, start, condition, recipe.cfg_scale)
            else:
                data = self.jump(x, torch.full_like(start, recipe.t_min), start, condition, recipe.cfg_scale)
                again = SIGMA * torch.randn(shape, generator=generator).to(device)
                x = add_noise(data, again, end, recipe.noise_schedule) if then > recipe.t_min else data
        return x / SIGMA


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 128
    """Images in a step."""
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0, betas=(0.9, 0.999), ema_decay=0.99)
    image_size: PositiveInt = 16
    """Side of the images in pixels."""
    patch_size: PositiveInt = 2
    """Side of a patch in pixels."""
    width: PositiveInt = 96
    """Channels of every token."""
    depth: NonNegativeInt = 4
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    objective: Objective = "mmd"
    """mmd: the paper's. consistency: one particle, squared distance. flow: flow matching with Euler's steps."""
    num_particles: PositiveInt = 4
    """Images whose distribution is compared; they share their times (section 5)."""
    parameterization: Parameterization = "euler"
    """What the network's output means: a velocity, EDM's mixture, or the image itself (appendix)."""
    noise_schedule: NoiseSchedule = "fm"
    """How data become noise; flow takes fm only."""
    mapping_k: NonNegativeInt = 8
    """A jump is learned from one that starts 1/2^mapping_k of the largest noise-over-data earlier. 12 to 15 in the
    paper, whose training is a thousand times as long."""
    t_min: UnitInterval = 0.006
    """Smallest time: the end of sampling."""
    t_max: UnitInterval = 0.994
    """Largest time: the begin of sampling."""
    loss_weight_b: float = 5.0
    """Of the log signal-to-noise ratio at which the loss's weight falls off (b of equation 13)."""
    loss_weight_a: float = 1.0
    """Of alpha in that weight (a of equation 13): 1 for single steps, 2 for several."""
    text: TextEncoderConfig = TextEncoderConfig()
    """Reads the words that images are generated from, where the corpus has any."""
    cond_drop_prob: UnitInterval = 0.1
    """Share of examples that train without their label and text, for guidance."""
    cfg_scale: float = 1.0
    """Weight of label and text in sampling; other values than 1 run the network twice a step."""
    sampler: Literal["pushforward", "restart"] = "pushforward"
    """From time to time directly, or through data and fresh noise."""
    augmentation: ImageAugmentation = NONE

    def columns(self) -> Declared:
        image = ImageColumn(self.image_size)
        return {"image": image, "label": Optional(LabelColumn()), "text": Optional(TextColumn(self.text))}

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError: the corpus has neither a label nor texts."""
        if corpus.label is None and not corpus.has_modality(Text):
            raise UserError(f"The corpus '{corpus.name}' has neither a label nor texts to generate images from.")
        return [corpus]

    def build(self, processor: Processor) -> JumpNetwork:
        if self.objective == "mmd" and self.batch_size % self.num_particles:
            raise UserError(
                f"A batch of {self.batch_size} does not divide into groups of {self.num_particles} particles."
            )
        if self.t_min >= self.t_max:
            raise UserError("--t-min, the earliest time, is below --t-max.")
        if self.objective == "flow" and (self.noise_schedule, self.parameterization) != ("fm", "euler"):
            raise UserError("The objective flow goes with --noise-schedule fm and --parameterization euler.")
        classes = len(processor.label.names) if processor.label is not None else 0
        return JumpNetwork(self, classes, processor.text.tokenizer.vocab_size if processor.text is not None else 0)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> GenerationBatch:
        """Images, their labels and captions, and for which of them either is shown."""
        pixels = processor.image.pixels([example["image"] for example in examples])
        image = processor.image.normalize(augment(pixels, self.augmentation, example_rng))
        batch: GenerationBatch = {"image": image, **conditions(processor, examples, example_rng.generators)}
        any_shown, which = example_rng.uniform() >= self.cond_drop_prob, example_rng.uniform()
        both = "label" in batch and "text" in batch  # each is to generate alone, too
        if "label" in batch:
            batch["label_shown"] = any_shown & ~(both & (which < 0.25))
        if "text" in batch:
            batch["text_shown"] = any_shown & ~(both & (which > 0.75))
        return batch

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            text=TextEncoderConfig(300, context_length=24, width=16, depth=1, num_heads=2),
            image_size=8,
            width=16,
            depth=1,
            num_heads=2,
            num_particles=2,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """CIFAR-10 (table 6 of the method's paper), with DiT-B in place of the U-Net."""
        return cls(
            batch_size=4096,
            optimizer=OptimizerConfig(weight_decay=0.0, betas=(0.9, 0.999), learning_rate=1e-4, ema_decay=0.9999),
            image_size=32,
            width=768,
            depth=12,
            num_heads=12,
            mapping_k=15,
        )
