"""Expected score over ordered prompts, such as "bad image" to "perfect image" (UniQA, Zhou et al. 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ExpectedScore(nn.Module):
    """The mean of learned levels under the softmax over the prompts of a group, averaged over groups.

    The levels begin at 1/L ... 1 in steps of 1/L, with prompts in ascending order, and are shared by the groups. A
    score lies between the smallest and the largest level.
    """

    def __init__(self, num_levels: int = 5):
        super().__init__()
        self.score_level = nn.Parameter(self.initial(num_levels))

    @staticmethod
    def initial(num_levels: int) -> Float[Tensor, " levels"]:
        """Levels before training, also those of zero-shot scores."""
        return torch.arange(1, num_levels + 1) / num_levels

    def forward(
        self, logits: Float[Tensor, "batch prompts"], levels: Float[Tensor, " levels"] | None = None
    ) -> Float[Tensor, " batch"]:
        """logits: scaled similarities with all prompts, group by group. levels: others than the learned ones."""
        levels = self.score_level if levels is None else levels
        probabilities = logits.unflatten(1, (-1, len(levels))).softmax(-1)
        return (probabilities @ levels).mean(1)
