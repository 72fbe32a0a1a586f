"""Macro F1 as a differentiable loss, with probabilities in place of predictions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7


def soft_macro_f1_loss(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return 1 - the mean of the classes' F1, whose counts are sums of probabilities (MQDD, released code).

    It compares the examples of a batch, so that logits and labels are those of all of it.
    """
    true = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    predicted = torch.softmax(logits, dim=1)
    positives = (true * predicted).sum(0)
    precision = positives / (predicted.sum(0) + EPSILON)
    recall = positives / (true.sum(0) + EPSILON)
    f1 = 2 * precision * recall / (precision + recall + EPSILON)
    return 1 - f1.clamp(EPSILON, 1 - EPSILON).mean()
