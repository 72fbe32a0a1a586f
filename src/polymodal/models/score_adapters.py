"""Scores of images by ordered prompts, with an adapter of its own for each score (UniQA, Zhou et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.expected_score import ExpectedScore
from polymodal.layers.residual_adapter import ResidualAdapter
from polymodal.modalities.image_augmentation import random_crops
from polymodal.modalities.text import Tokens
from polymodal.models.dual_encoder import DualEncoderModel
from polymodal.objectives.reduction import mean_over
from polymodal.objectives.regression import masked_mse
from polymodal.types import Batch


class RatedBatch(TypedDict):
    """scores: 0 to 1, NaN where there is none."""

    image: Float[Tensor, "batch 3 size size"]
    scores: Float[Tensor, "batch scores"]


class ScoreAdapters(nn.ModuleList):
    """For each score, a residual adapter of the image vector and the levels of the prompts."""

    def __init__(self, num_scores: int, width: int, num_levels: int):
        parts = [{"adapter": ResidualAdapter(width), "head": ExpectedScore(num_levels)} for _ in range(num_scores)]
        super().__init__(nn.ModuleDict(part) for part in parts)
        self.num_levels = num_levels

    def forward(
        self,
        features: Float[Tensor, "batch dim"],
        prompts: Float[Tensor, "prompts dim"],
        logit_scale: Float[Tensor, ""],
        trained: bool = True,
    ) -> Float[Tensor, "batch scores"]:
        """Return scores. features: not normalized. prompts: normalized. trained: else without adapters."""
        scores = []
        for part in self:
            # f' = f + A(f), normalized; p = softmax(scale f' . t) in each group; the mean of sum_l p_l w_l.
            adapted = F.normalize(part["adapter"](features) if trained else features, dim=-1)  # type: ignore[index]
            head = part["head"]  # type: ignore[index]
            levels = None if trained else head.initial(self.num_levels).to(features)
            scores.append(head(logit_scale * adapted @ prompts.T, levels))
        return torch.stack(scores, 1)


class PromptedScorer(DualEncoderModel):
    """A dual encoder of images and texts that scores images by prompts, with an adapter for each score."""

    prompt_ids: Tensor
    prompt_lengths: Tensor

    def add_adapters(
        self, prompts: Tokens, scores: Sequence[str], num_levels: int, image_size: int, num_crops: int
    ) -> None:
        """prompts: `num_levels` in ascending order in each group. scores: names. num_crops: of an image at test time,
        whose side is `image_size`."""
        self.scores, self.special_tokens = tuple(scores), prompts.special_tokens
        self.crop_size, self.num_crops = image_size, num_crops
        self.register_buffer("prompt_ids", prompts.ids, persistent=False)
        self.register_buffer("prompt_lengths", prompts.lengths, persistent=False)
        self.adapters = ScoreAdapters(len(scores), self.config.embed_dim, num_levels)

    @mean_over("score_counts")
    def score_losses(self, batch: RatedBatch) -> dict[str, Tensor]:
        """mse_NAME: mean squared error of each score, over the images that have it."""
        predicted, scores = self._scores(batch["image"], trained=True), batch["scores"]
        return {f"mse_{name}": masked_mse(predicted[:, n], scores[:, n]) for n, name in enumerate(self.scores)}

    def score_counts(self, batch: RatedBatch) -> dict[str, Tensor]:
        """Count the images that have each score."""
        return {f"mse_{name}": (~batch["scores"][:, n].isnan()).sum() for n, name in enumerate(self.scores)}

    def predict_scores(self, batch: Batch) -> Float[Tensor, "batch scores"]:
        """Return scores, 0 to 1: of each image, the mean over crops at random places."""
        return self._mean_scores(batch["image"], trained=True)

    def zero_shot_scores(self, batch: Batch) -> Float[Tensor, "batch scores"]:
        """Return scores without adapter, of the levels before training; equal for all scores."""
        return self._mean_scores(batch["image"], trained=False)

    def _mean_scores(self, image: Tensor, trained: bool) -> Float[Tensor, "batch scores"]:
        crops = random_crops(image, self.crop_size, self.num_crops)
        return torch.stack([self._scores(crop, trained) for crop in crops]).mean(0)

    def _scores(self, crop: Float[Tensor, "batch 3 size size"], trained: bool) -> Float[Tensor, "batch scores"]:
        encoder, projection = self._parts("image")
        prompts = self.encode_text(Tokens(self.prompt_ids, self.prompt_lengths, self.special_tokens))
        return self.adapters(projection(encoder.pooled(crop)), prompts, self.logit_scale(), trained)
