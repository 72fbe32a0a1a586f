"""MPO: mixed preference optimization of multimodal LLMs, the sum of a DPO, a BCO and an SFT loss.

A model that was taught with right answers only goes wrong on its own words, above all where it works an answer out.
Pairs of its own answers (`polymodal sample-preferences`) are learned from with three losses at once: preference (DPO),
quality (BCO) and generation (section 3.3, equations 1 to 5), against the model as it was at first, which stays frozen.

Terms: preference loss = losses.dpo, quality loss = losses.bco, generation loss = losses.sft.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.conversation import IMAGE, Turn
from polymodal.data.instructions import choice
from polymodal.data.processor import Declared, Processor
from polymodal.data.sequence import SequenceBatch, pad_sequences
from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather, all_gather_with_grad
from polymodal.modalities import Preferences
from polymodal.modalities.preference import Preference
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.objectives.autoregressive import segment_sum
from polymodal.objectives.preference import aot, bco, dpo, hinge, ipo, orpo, robust_dpo, sppo
from polymodal.objectives.reduction import global_mean
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.language_models._base import MonolithRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="mpo",
    title="Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization",
    year=2024,
    arxiv="2411.10442",
    modalities=("image", "text"),
)

PreferenceLoss = Literal["dpo", "robust_dpo", "hinge", "ipo", "sppo", "aot", "orpo"]


class MPO(VisionLanguageModel):
    """The model that learns, and what it was at first."""

    def __init__(self, model: VisionLanguageModel, recipe: Recipe):
        encoders = {name: model.get_submodule(f"{name}_encoder") for name in model.encoded}
        super().__init__(encoders, model.language_model, model.end, model.loss_reduction, model.experts)
        self.recipe = recipe
        self.reference = copy.deepcopy(model).requires_grad_(False)
        self.mean_reward: Tensor
        self.rewards_seen: Tensor
        self.register_buffer("mean_reward", torch.tensor(0.0))
        self.register_buffer("rewards_seen", torch.tensor(0.0))

    def keep_reference(self) -> None:
        """The model as it is now is what it will be compared with."""
        for name in ("language_model", *(f"{name}_encoder" for name in self.encoded)):
            self.reference.get_submodule(name).load_state_dict(self.get_submodule(name).state_dict())

    def train(self, mode: bool = True) -> MPO:
        super().train(mode)
        self.reference.eval()
        return self

    @two_halves("log_probabilities", "preference_losses")
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """dpo, bco and sft, with their weights; the batch has all chosen, then all rejected."""
        return self.preference_losses(self.log_probabilities(batch))

    def log_probabilities(self, batch: SequenceBatch) -> dict[str, Float[Tensor, "pairs answers"]]:
        """Of the chosen and of the rejected answer of each pair: log p by this model and by the reference; tokens."""
        rows = len(batch["sequences"])
        token_losses, row, _ = self.token_losses(batch)
        own = -segment_sum(token_losses, row, rows)
        with torch.no_grad():
            reference = self.reference.log_likelihood(batch)
        length = segment_sum(torch.ones_like(token_losses), row, rows)
        by_row = {"own": own, "reference": reference, "length": length}
        return {name: values.view(2, -1).T for name, values in by_row.items()}

    def preference_losses(self, answers: dict[str, Float[Tensor, "pairs answers"]]) -> dict[str, Tensor]:
        """Of all pairs of the batch, given their `log_probabilities`."""
        recipe = self.recipe
        own, reference, length = (answers[name].T.flatten() for name in ("own", "reference", "length"))
        rewards = recipe.beta * (own - reference)
        chosen, rejected = rewards.chunk(2)
        losses = {}
        if recipe.dpo_weight:
            values = {"ipo": rewards / length, "orpo": own / length}.get(recipe.loss_type, rewards)
            losses["dpo"] = recipe.dpo_weight * self._preference_loss(*values.chunk(2))
        if recipe.bco_weight:
            center = self._center(rewards.detach())
            losses["bco"] = recipe.bco_weight * bco(chosen, rejected, center)
        if recipe.sft_weight:
            losses["sft"] = recipe.sft_weight * global_mean(-own.chunk(2)[0].sum(), length.chunk(2)[0].sum())
        return losses

    def _preference_loss(self, chosen: Tensor, rejected: Tensor) -> Float[Tensor, ""]:
        recipe = self.recipe
        of: dict[PreferenceLoss, Callable[[], Tensor]] = {
            "dpo": lambda: dpo(chosen, rejected, recipe.label_smoothing),
            "robust_dpo": lambda: robust_dpo(chosen, rejected, recipe.label_smoothing),
            "hinge": lambda: hinge(chosen, rejected),
            "ipo": lambda: ipo(chosen, rejected, recipe.beta),
            "sppo": lambda: sppo(chosen, rejected, recipe.beta),
            "aot": lambda: aot(all_gather_with_grad(chosen), all_gather_with_grad(rejected)),
            "orpo": lambda: recipe.beta * orpo(chosen, rejected),
        }
        return of[recipe.loss_type]()

    @torch.no_grad()
    def _center(self, rewards: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
        """The mean of all rewards so far, of all processes, those of this batch among them."""
        everyone = all_gather(rewards)
        self.rewards_seen += len(everyone)
        self.mean_reward += (everyone.mean() - self.mean_reward) * len(everyone) / self.rewards_seen
        return self.mean_reward.clone()


@dataclass(frozen=True)
class Recipe(MonolithRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, weight_decay=0.05, betas=(0.9, 0.999))
    max_tiles: PositiveInt = 1
    """Most tiles of an image; the whole is added where there are several."""
    beta: PositiveFloat = 0.1
    """Factor of the log-ratios that are rewards (section 4.1)."""
    dpo_weight: NonNegativeFloat = 0.8
    """Weight of the loss that tells the chosen from the rejected answer."""
    bco_weight: NonNegativeFloat = 0.2
    """Weight of the loss that tells good answers from bad ones, each by itself."""
    sft_weight: NonNegativeFloat = 1.0
    """Weight of -log p of the chosen answer."""
    loss_type: PreferenceLoss = "dpo"
    """What tells the chosen from the rejected answer: DPO, or another that the paper compares it with."""
    label_smoothing: UnitInterval = 0.0
    """Share of pairs that dpo and robust_dpo take to be the wrong way round, below 0.5."""

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("preferences", on_start="keep_reference"),)

    def columns(self) -> Declared:
        return self.conversation(self.images(self.max_tiles, self.max_tiles))

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError: the corpus has no preferences."""
        if not corpus.has_modality(Preferences):
            raise UserError(
                f"The corpus '{corpus.name}' has no preferences to learn from; make some with: "
                "polymodal sample-preferences RUN."
            )
        return [corpus]

    def build(self, processor: Processor) -> MPO:
        return MPO(super().build(processor), self)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """One pair of each example: all chosen answers, then all rejected ones, beside the same images."""
        pairs = [one_pair(e["preferences"], rng) for e, rng in zip(examples, example_rng.generators, strict=True)]
        images = [example[IMAGE] for example in examples]
        said = [Turn(p.chosen, p.question) for p in pairs] + [Turn(p.rejected, p.question) for p in pairs]
        rows = zip(images * 2, said, strict=True)
        form = processor.conversation
        return {"sequences": pad_sequences([form.sequence(image, [one], self.max_tiles) for image, one in rows])}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        base = mono_internvl.Recipe.tiny()
        return cls(
            language_model=base.language_model,
            tile_size=base.tile_size,
            patch_size=base.patch_size,
            patch_embed_dim=base.patch_embed_dim,
            batch_size=base.batch_size,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """Section 4.1's optimisation, of a model as large as Mono-InternVL's (the paper's InternVL2 has 8B)."""
        base = mono_internvl.Recipe.paper()
        return cls(
            language_model=base.language_model,
            tile_size=base.tile_size,
            patch_size=base.patch_size,
            patch_embed_dim=base.patch_embed_dim,
            max_tiles=6,
            batch_size=256,
            optimizer=OptimizerConfig(weight_decay=0.05, betas=(0.9, 0.999), learning_rate=5e-6),
        )


def one_pair(pairs: list[Preference], rng: np.random.Generator) -> Preference:
    """A pair of any question, each question as often: one has many pairs, a caption a single one."""
    question = choice(sorted({pair.question for pair in pairs}), rng)
    return choice([pair for pair in pairs if pair.question == question], rng)
