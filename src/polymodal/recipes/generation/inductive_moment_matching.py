"""Inductive moment matching: a network that jumps from any noise level to any lower one, in one step or in many.

It is told where to go as well as where it is. Samples that it brings from time t to s must be distributed as those that
it brings from r, a little before t, to s; as r nears s these become noised data, so that all jumps are learned by
induction, without a teacher and without simulation (sections 4 to 6 of the method's paper, arXiv 2503.07565).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.conditioned_image import ConditionedImageProcessor
from polymodal.draws import Draws
from polymodal.encoders.condition import Condition
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.diffusion_transformer import DiffusionTransformer, TimeEmbedding
from polymodal.modalities.image_augmentation import NONE, ImageAugmentation, augment
from polymodal.objectives.diffusion import (
    Interpolant,
    Times,
    alpha_sigma,
    ddim,
    flow_matching_loss,
    noised,
    over,
    to_time,
)
from polymodal.ranges import BelowOne, Count, NotNegative, Share, Whole
from polymodal.training.optimiser import Optimisation
from polymodal.types import Batch, Budget, Claim, Example, Paper

paper = Paper(
    slug="inductive-moment-matching",
    title="Ideas in Inference-time Scaling can Benefit Generative Pre-training Algorithms",
    year=2025,
    arxiv="2503.07154",
    modalities=("image", "category"),
)

Objective = Literal["moments", "consistency", "flow"]
Parameters = Literal["euler", "edm", "identity"]
Pictures = Float[Tensor, "batch channels size size"]
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


def coefficient(to: Times, time: Times, parameters: Parameters, interpolant: Interpolant) -> Times:
    """How much the network's output counts in a jump, without its sign."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(to, interpolant), alpha_sigma(time, interpolant)
    if parameters == "euler":
        return SIGMA * (time - to)
    if parameters == "identity":
        return alpha_s - alpha_t * sigma_s / sigma_t
    return SIGMA * (alpha_s * sigma_t - alpha_t * sigma_s) / (alpha_t**2 + sigma_t**2).sqrt()


def loss_weight(time: Times, interpolant: Interpolant, shift: float, power: float) -> Times:
    """The weight of a time: as the evidence bound has it, times powers of alpha (equation 13)."""
    alpha, sigma = alpha_sigma(time, interpolant)
    log_ratio = 2 * (alpha / sigma).log()
    slope = 2 / (time * (1 - time)) if interpolant == "linear" else 2 * math.pi / torch.sin(math.pi * time)
    return 0.5 * torch.sigmoid(shift - log_ratio) * slope * alpha**power / (alpha**2 + sigma**2)


class JumpNetwork(nn.Module):
    """Takes pictures from one noise level to a lower one; generates by doing so from pure noise."""

    def __init__(self, recipe: Recipe, classes: int, vocabulary: int = 0):
        """classes, vocabulary: of the labels and texts that pictures are generated from, 0 where there are none."""
        super().__init__()
        self.recipe = recipe
        self.backbone = DiffusionTransformer(recipe.size, recipe.patch, recipe.width, recipe.depth, recipe.heads)
        self.from_time = TimeEmbedding(recipe.width)
        self.to_time = TimeEmbedding(recipe.width)
        self.condition = Condition(recipe.width, recipe.text, classes, vocabulary)

    def jump(self, x: Pictures, to: Times, time: Times, condition: Tensor, guidance: float = 1.0) -> Pictures:
        """x, which is at `time`, at `to`. guidance: weight of what the condition adds, 1 as it is."""
        recipe = self.recipe
        output = self._output(x, to, time, condition)
        if guidance != 1.0:
            without = self._output(x, to, time, self.condition({}).expand_as(condition))
            output = guidance * output + (1 - guidance) * without
        if recipe.parameters == "identity":
            return ddim(x, output, to, time, recipe.interpolant)
        share = over(coefficient(to, time, recipe.parameters, recipe.interpolant), x)
        if recipe.parameters == "euler":
            return x - share * output
        (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(when, recipe.interpolant) for when in (to, time))
        kept = (alpha_t * alpha_s + sigma_t * sigma_s) / (alpha_t**2 + sigma_t**2)
        return over(kept, x) * x - share * output

    def _output(self, x: Pictures, to: Times, time: Times, condition: Tensor) -> Pictures:
        alpha, sigma = alpha_sigma(time, self.recipe.interpolant)
        if self.recipe.objective == "flow":
            to = time  # a flow knows no destination
        scaled = x / over(SIGMA * (alpha**2 + sigma**2).sqrt(), x)
        return self.backbone(scaled, self.from_time(time) + self.to_time(to) + condition)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """moments, consistency or flow, as the recipe says."""
        recipe, data = self.recipe, SIGMA * batch["image"]
        noise = SIGMA * torch.randn_like(data)
        condition = self.condition(batch)
        particles = recipe.particles if recipe.objective == "moments" else 1
        groups = len(data) // particles
        low, high = recipe.first, recipe.last
        time = low + (high - low) * torch.rand(groups, device=data.device).clamp(min=0.01)
        if recipe.objective == "flow":
            x = noised(data, noise, time)
            return {"flow": flow_matching_loss(SIGMA * self._output(x, time, time, condition), data, noise)}
        to = low + (time - low) * torch.rand(groups, device=data.device)
        middle = torch.maximum(to, self.before(time))
        weight = loss_weight(time, recipe.interpolant, recipe.weight_shift, recipe.weight_power)
        kernel = 1 / coefficient(to, time, recipe.parameters, recipe.interpolant).clamp(min=1e-3)

        every = [when.repeat_interleave(particles) for when in (to, middle, time)]
        rows = slice(0, groups * particles)
        data, noise, condition = data[rows], noise[rows], condition[rows]
        x = noised(data, noise, every[2], recipe.interpolant)
        nearer = ddim(x, data, every[1], every[2], recipe.interpolant)
        ours = self.jump(x, every[0], every[2], condition)
        with torch.no_grad():
            target = self.jump(nearer, every[0], every[1], condition)
        ours, target = (points.flatten(1).unflatten(0, (groups, particles)) for points in (ours, target))
        if recipe.objective == "consistency":
            error = (ours - target).square().mean((1, 2))
            return {"consistency": (weight * kernel * error).mean()}
        return {"moments": (weight * laplace_discrepancy(ours, target, kernel)).mean()}

    def before(self, time: Times) -> Times:
        """The time from which a jump is learned: a fixed step of noise over data less, and always less."""
        recipe = self.recipe

        def noise_over_data(when: Tensor) -> Tensor:
            alpha, sigma = alpha_sigma(when.double(), recipe.interpolant)
            return sigma / alpha

        least, most = noise_over_data(torch.tensor([recipe.first, recipe.last]))
        eta = noise_over_data(time) - (most - least) / 2**recipe.halvings
        earlier = to_time(eta.clamp(min=0.0), recipe.interpolant).to(time.dtype)
        return torch.minimum(earlier, time - SMALLEST_GAP).clamp(min=recipe.first)

    @torch.no_grad()
    def generate(self, batch: Batch, steps: int, generator: torch.Generator | None = None) -> Pictures:
        """A picture for each label or text, normalised as the processor's, in `steps` jumps at equally spaced times."""
        recipe, condition = self.recipe, self.condition(batch)
        count, device = len(condition), condition.device
        shape = (count, 3, recipe.size, recipe.size)
        noise = torch.randn(shape, generator=generator).to(device)
        times = torch.linspace(recipe.last, recipe.first, steps + 1, device=device)
        x = SIGMA * noise
        for now, then in itertools.pairwise(times):
            start, end = now.expand(count), then.expand(count)
            if recipe.sampler == "pushforward":
                x = self.jump(x, end, start, condition, recipe.guidance)
            else:
                data = self.jump(x, torch.full_like(start, recipe.first), start, condition, recipe.guidance)
                again = SIGMA * torch.randn(shape, generator=generator).to(device)
                x = noised(data, again, end, recipe.interpolant) if then > recipe.first else data
        return x / SIGMA


@dataclass(frozen=True)
class Recipe(Optimisation):
    batch_size: Count = 128
    """Pictures in a step."""
    weight_decay: NotNegative = 0.0
    """None, as in the paper."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    ema: BelowOne = 0.99
    """Decay a step of the moving average of the weights that becomes the result."""
    size: Count = 16
    """Side of the pictures in pixels."""
    patch: Count = 2
    """Side of a patch in pixels."""
    width: Count = 96
    """Channels of every token."""
    depth: Whole = 4
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads of a block."""
    objective: Objective = "moments"
    """moments: the paper's. consistency: one particle, squared distance. flow: flow matching with Euler's steps."""
    particles: Count = 4
    """Pictures whose distribution is compared; they share their times (section 5)."""
    parameters: Parameters = "euler"
    """What the network's output means: a velocity, EDM's mixture, or the picture itself (appendix)."""
    interpolant: Interpolant = "linear"
    """How data become noise; flow takes linear only."""
    halvings: Whole = 8
    """A jump is learned from one that starts 1/2^halvings of the largest noise-over-data earlier. 12 to 15 in the
    paper, whose training is a thousand times as long."""
    first: Share = 0.006
    """Smallest time: the end of sampling."""
    last: Share = 0.994
    """Largest time: the begin of sampling."""
    weight_shift: float = 5.0
    """Of the log signal-to-noise ratio at which the loss's weight falls off (b of equation 13)."""
    weight_power: float = 1.0
    """Of alpha in that weight (a of equation 13): 1 for single steps, 2 for several."""
    text: TextEncoderConfig = TextEncoderConfig()
    """Reads the words that pictures are generated from, where the corpus has any."""
    unconditioned: Share = 0.1
    """Share of examples that train without their label and text, for guidance."""
    guidance: float = 1.0
    """Weight of label and text in sampling; other values than 1 run the network twice a step."""
    sampler: Literal["pushforward", "restart"] = "pushforward"
    """From time to time directly, or through data and fresh noise."""
    augmentation: ImageAugmentation = NONE

    def processor(self, corpus: Corpus) -> ConditionedImageProcessor:
        return ConditionedImageProcessor.fit(corpus, self.size, self.text.tokenizer)

    def load_processor(self, directory: Path) -> ConditionedImageProcessor:
        return ConditionedImageProcessor.load(directory, self.text.load_tokenizer)

    def build(self, processor: ConditionedImageProcessor) -> JumpNetwork:
        if self.objective == "moments" and self.batch_size % self.particles:
            raise UserError(f"A batch of {self.batch_size} does not divide into groups of {self.particles} particles.")
        if self.first >= self.last:
            raise UserError("--first, the earliest time, is below --last.")
        if self.objective == "flow" and (self.interpolant, self.parameters) != ("linear", "euler"):
            raise UserError("The objective flow goes with --interpolant linear and --parameters euler.")
        classes = len(processor.label.names) if processor.label is not None else 0
        return JumpNetwork(self, classes, processor.text.tokenizer.vocabulary if processor.text is not None else 0)

    def training_batch(self, examples: list[Example], processor: ConditionedImageProcessor, draws: Draws) -> Batch:
        """Pictures, their labels and captions, and for which of them either is shown."""
        pixels = processor.image.pixels([example["image"] for example in examples])
        image = processor.image.normalise(augment(pixels, self.augmentation, draws))
        conditions = processor.conditions(examples, draws.generators)
        any_shown, which = draws.uniform() >= self.unconditioned, draws.uniform()
        both = len(conditions) > 1
        hidden = {"label": both & (which < 0.25), "text": both & (which > 0.75)}  # either is to do alone, too
        shown = {f"{name}_shown": any_shown & ~hidden[name] for name in conditions}
        return {"image": image} | conditions | shown

    @classmethod
    def paper(cls) -> Recipe:
        """CIFAR-10 (table 6 of the method's paper), with DiT-B in place of the U-Net."""
        return cls(batch_size=4096, learning_rate=1e-4, ema=0.9999, size=32, width=768, depth=12, heads=12, halvings=15)


_jumps = Recipe(size=8, width=64, depth=3, learning_rate=2e-3)
claim = Claim(
    sentence="Trained for jumps of any length, a network makes better pictures in one step than flow matching does.",
    baseline=dataclasses.replace(_jumps, objective="flow"),
    treatment=_jumps,
    further={
        "two particles": dataclasses.replace(_jumps, particles=2),
        "one particle (consistency)": dataclasses.replace(_jumps, objective="consistency"),
    },
    corpus="digits",
    budget=Budget(steps=1500),
    seeds=3,
    metrics=(
        "test/generation_in_1/frechet_distance",
        "test/generation_in_2/frechet_distance",
        "test/generation_in_4/frechet_distance",
        "test/generation_in_8/frechet_distance",
        "test/generation_in_32/frechet_distance",
        "test/real_pictures/frechet_distance",
        "test/generation_in_1/kernel_distance",
        "test/generation_in_4/kernel_distance",
        "test/generation_in_1/accuracy",
        "test/generation_in_4/accuracy",
        "test/real_pictures/accuracy",
    ),
    paper_figures="CIFAR-10 FID 3.20 in one step and 1.98 in two, against 6.35 of flow matching in 142",
)
