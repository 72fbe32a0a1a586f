"""MPO: mixed preference optimization of multimodal LLMs, the sum of a DPO, a BCO and an SFT loss.

A model that was fine-tuned on correct answers alone goes wrong when it continues its own text, above all in chains of
thought. It learns here from pairs of its own answers (`polymodal sample-preferences RUN`: sampled answers that are
right and wrong, and DropoutNTP) with three losses at once: preference (DPO), quality (BCO) and generation (SFT)
(section 3.3, equations 1 to 5), against the model as it was at first, which stays frozen as the reference. The
architecture is that of the run of `--init`, whose weights it starts from.

Terms: preference loss L_p = losses.dpo, quality loss L_q = losses.bco, generation loss L_g = losses.sft,
reward shift delta = RewardShift, TR-DPO = ref_model_mixup_alpha, DropoutNTP and MMPR =
curation.preferences.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

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
from polymodal.encoders.pretrained import PretrainedConfig
from polymodal.errors import UserError
from polymodal.layers.lora import merged_parameters
from polymodal.modalities import Preferences
from polymodal.modalities.preference import Preference
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.objectives.autoregressive import segment_sum
from polymodal.objectives.preference import PreferenceLoss, RewardShift, bco, preference_loss
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
    code="OpenGVLab/InternVL@2410d1dbf208f0e799459aff9376e5747dbf41a2",
)


class MPO(VisionLanguageModel):
    """The policy, and the frozen reference model that its rewards are relative to."""

    def __init__(self, model: VisionLanguageModel, recipe: Recipe):
        encoders = {name: model.get_submodule(f"{name}_encoder") for name in model.encoded}
        super().__init__(encoders, model.language_model, model.end, model.loss_reduction, model.experts)
        self.recipe = recipe
        self.reference = copy.deepcopy(model).requires_grad_(False)
        self.reward_shift = RewardShift()
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(0))

    @torch.no_grad()
    def update_reference(self, alpha: float = 1.0) -> None:
        """Move the reference to alpha * policy + (1 - alpha) * reference, where LoRA is merged into the policy."""
        policy = dict(merged_parameters(self))
        for name, parameter in self.reference.named_parameters():
            parameter.lerp_(policy[name], alpha)

    def after_step(self, fraction: float) -> None:
        """Update the reference every few steps, if it moves at all (TR-DPO, Gorbatovski et al. 2024)."""
        self.steps += 1
        alpha, every = self.recipe.ref_model_mixup_alpha, self.recipe.ref_model_sync_steps
        if alpha and self.steps % every == 0:
            self.update_reference(alpha)

    def train(self, mode: bool = True) -> MPO:
        super().train(mode)
        self.reference.eval()
        return self

    @two_halves("log_probabilities", "preference_losses")
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """dpo, bco and sft, with their weights; the batch has all chosen, then all rejected answers."""
        return self.preference_losses(self.log_probabilities(batch))

    def log_probabilities(self, batch: SequenceBatch) -> dict[str, Float[Tensor, "pairs 2"]]:
        """Of the chosen and of the rejected answer of each pair: log p by policy and by reference; tokens."""
        rows = len(batch["sequences"])
        token_losses, row, _ = self.token_losses(batch)
        with torch.no_grad():
            reference = self.reference.log_likelihood(batch)
        by_row = {
            "policy": -segment_sum(token_losses, row, rows),
            "reference": reference,
            "length": segment_sum(torch.ones_like(token_losses), row, rows),
        }
        return {name: values.view(2, -1).T for name, values in by_row.items()}

    def implicit_rewards(self, batch: SequenceBatch) -> Float[Tensor, " batch"]:
        """beta * (log p of the policy - log p of the reference) of each row's answer, which DPO compares."""
        return self.recipe.beta * (self.log_likelihood(batch) - self.reference.log_likelihood(batch))

    def preference_losses(self, answers: dict[str, Float[Tensor, "pairs 2"]]) -> dict[str, Tensor]:
        """Of all pairs of the batch, given their `log_probabilities`."""
        recipe, losses = self.recipe, {}
        policy, reference, length = answers["policy"], answers["reference"], answers["length"]
        if recipe.dpo_weight:  # L_p, equation 2
            pairs = policy, reference, length
            loss = preference_loss(recipe.loss_type, *pairs, recipe.beta, recipe.label_smoothing)
            losses["dpo"] = recipe.dpo_weight * loss
        if recipe.bco_weight:  # L_q, equations 3 and 4; delta is updated before its use
            rewards = recipe.beta * (policy - reference)
            losses["bco"] = recipe.bco_weight * bco(rewards[:, 0], rewards[:, 1], self.reward_shift(rewards))
        if recipe.sft_weight:  # L_g, equation 5: the mean over the tokens of all chosen answers
            losses["sft"] = recipe.sft_weight * global_mean(-policy[:, 0].sum(), length[:, 0].sum())
        return losses


@dataclass(frozen=True)
class Recipe(MonolithRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, weight_decay=0.05, betas=(0.9, 0.999))
    max_tiles: PositiveInt = 1
    """Maximum number of tiles of an image; the thumbnail is added where there are several."""
    beta: PositiveFloat = 0.1
    """Factor of the log-ratios that are rewards (section 4.1)."""
    dpo_weight: NonNegativeFloat = 0.8
    """Weight of the preference loss."""
    bco_weight: NonNegativeFloat = 0.2
    """Weight of the quality loss."""
    sft_weight: NonNegativeFloat = 1.0
    """Weight of the generation loss, -log p of the chosen answer a token; with DPO or BCO alone: DPO+, BCO+."""
    loss_type: PreferenceLoss = "dpo"
    """Preference loss: DPO, or another that the paper compares it with (table 4)."""
    label_smoothing: UnitInterval = 0.0
    """Assumed probability of flipped pairs for dpo (cDPO) and robust_dpo, below 0.5."""
    ref_model_mixup_alpha: UnitInterval = 0.0
    """TR-DPO: how far the reference moves towards the policy in an update; 0: it stays."""
    ref_model_sync_steps: PositiveInt = 64
    """TR-DPO: steps between two updates of the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.dpo_weight or self.bco_weight or self.sft_weight):
            raise UserError("Nothing is learned where --dpo-weight, --bco-weight and --sft-weight are all 0.")
        if self.label_smoothing and self.loss_type not in ("dpo", "robust_dpo"):
            raise UserError(f"--label-smoothing has no effect on {self.loss_type}; leave it at 0.")
        if self.label_smoothing >= 0.5:
            raise UserError(
                f"--label-smoothing is below 0.5, not {self.label_smoothing}: with half of the pairs flipped, they say "
                "nothing."
            )

    def starting_from(self, source: Any) -> Recipe:
        """Return the recipe with the architecture of a run's recipe. Raises UserError for none, or another kind."""
        if source is None:
            raise UserError(
                "MPO learns from the answers of a trained model, which is also its reference; name the run whose pairs "
                "these are by --init RUN."
            )
        if not isinstance(source, MonolithRecipe):
            raise UserError("MPO starts from runs of mono_internvl or of mpo; --init names a run of another recipe.")
        if isinstance(self.language_model, PretrainedConfig) and self.language_model != source.language_model:
            raise UserError("MPO takes the language model of the run of --init; leave --lm out.")
        architecture = ("language_model", "tile_size", "patch_size", "patch_embed_dim", "visual_experts")
        return replace(self, **{name: getattr(source, name) for name in architecture})

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("preferences", on_start="update_reference"),)

    def columns(self) -> Declared:
        return self.conversation(self.images(self.max_tiles, self.max_tiles))

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError: the corpus has no preferences."""
        corpus.require(Preferences, "preferences", "make some with: polymodal sample-preferences RUN")
        return [corpus]

    def build(self, processor: Processor) -> MPO:
        return MPO(super().build(processor), self)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """One pair of each example: all chosen answers, then all rejected ones, beside the same images."""
        pairs = [one_pair(e["preferences"], rng) for e, rng in zip(examples, example_rng.generators, strict=True)]
        images = [example.get(IMAGE) for example in examples]
        said = [Turn(p.chosen, p.question) for p in pairs] + [Turn(p.rejected, p.question) for p in pairs]
        rows = zip(images * 2, said, strict=True)
        form = processor.conversation
        return {"sequences": pad_sequences([form.sequence(image, [one], self.max_tiles) for image, one in rows])}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        base = mono_internvl.Recipe.tiny()
        return cls(batch_size=base.batch_size).starting_from(base)

    @classmethod
    def paper(cls) -> Recipe:
        """Section 4.1's optimization, of a model as large as Mono-InternVL's (the paper's InternVL2 has 8B)."""
        optimizer = OptimizerConfig(learning_rate=5e-6, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8)
        recipe = cls(max_tiles=6, batch_size=256, optimizer=optimizer).starting_from(mono_internvl.Recipe.paper())
        return replace(recipe, language_model=replace(recipe.language_model, context_length=6144))


def one_pair(pairs: list[Preference], rng: np.random.Generator) -> Preference:
    """A pair of any question, each question as often: one has many pairs, a caption a single one."""
    question = choice(sorted({pair.question for pair in pairs}), rng)
    return choice([pair for pair in pairs if pair.question == question], rng)
