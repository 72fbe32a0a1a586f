"""Scores of images by ordered prompts, with an adapter of its own for each score (UniQA, Zhou et al. 2024)."""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.expected_score import ExpectedScore
from polymodal.layers.residual_adapter import ResidualAdapter


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
