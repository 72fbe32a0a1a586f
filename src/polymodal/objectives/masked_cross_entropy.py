"""Naming what was hidden: words, patches, cells."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def masked_cross_entropy(logits: Float[Tensor, "masked classes"], classes: Int[Tensor, " masked"]) -> Float[Tensor, ""]:
    """The mean over all that is hidden; 0, and no error, when nothing is."""
    return F.cross_entropy(logits, classes, reduction="sum") / max(len(classes), 1)
