"""Do these two belong together? Matching with hard negatives (ALBEF, Li et al. 2021, section 3.2)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-4  # added to every probability, so that a pair of which all is certain still has negatives


@torch.no_grad()
def sample_hard_negatives(
    similarity: Float[Tensor, "batch batch"], same: Bool[Tensor, "batch batch"] | None = None
) -> Int[Tensor, " batch"]:
    """For each row, the number of another column, drawn the more often the more similar it is (softmax).

    similarity: logits; row i belongs to column i, which is never drawn. same: True where row and column match although
    they stand at different places, so that they are no negatives, either; a row without any negative gets the next one.
    """
    weights = similarity.float().softmax(1) + EPS
    weights.fill_diagonal_(0.0)
    if same is not None:
        weights = weights.masked_fill(same, 0.0)
    none = weights.sum(1) == 0
    following = torch.arange(len(weights), device=weights.device).roll(-1)
    weights[none, following[none]] = 1.0
    return torch.multinomial(weights, 1).squeeze(1)


def itm_loss(logits: Float[Tensor, "pairs 2"], num_positives: int) -> Float[Tensor, ""]:
    """Cross-entropy of "no" and "yes", where the first `num_positives` pairs belong together and the others do not."""
    labels = torch.arange(len(logits), device=logits.device) < num_positives
    return F.cross_entropy(logits, labels.long())
