"""Losses of masked modeling (MLM, masked image modeling) over masked positions only.

Cross-entropy of tokens or codes, squared error of pixels. All are 0, with zero gradients, where nothing is masked, and
means over the masked positions of all processes (`objectives.reduction`).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.objectives.reduction import global_mean

NORM_PIX_EPS = 1e-6  # MAE, released code


def masked_cross_entropy(
    logits: Float[Tensor, "masked classes"], targets: Int[Tensor, " masked"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over masked positions, given their logits alone.

    For tokens (BERT), or for the codes that a frozen image tokenizer assigns to masked patches (BEiT, equation 2).
    """
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return global_mean(loss, len(targets))


def masked_lm_loss(
    head: MaskedLMHead,
    hidden_states: Float[Tensor, "batch length width"],
    embedding: Float[Tensor, "entries width"],
    targets: Int[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """Return the masked language modeling (MLM) loss; logits are computed for masked positions alone."""
    return masked_cross_entropy(head(hidden_states[mask], embedding), targets[mask])


def masked_patch_loss(
    prediction: Float[Tensor, "batch patches values"],
    patches: Float[Tensor, "batch patches values"],
    mask: Bool[Tensor, "batch patches"],
    norm_pix: bool = True,
) -> Float[Tensor, ""]:
    """Return the mean squared error over masked patches (MAE, section 3, with a mask ratio of 75 %).

    norm_pix: whether a target patch is standardized by the mean and the (unbiased) variance of its own values.
    """
    prediction, target = prediction[mask], normalize_patches(patches[mask]) if norm_pix else patches[mask]
    error = (prediction - target).square().mean(-1).sum()
    return global_mean(error, mask.sum())


def normalize_patches(patches: Float[Tensor, "*shape values"]) -> Float[Tensor, "*shape values"]:
    """Standardize each patch by its own mean and variance (MAE, section 4.1, `norm_pix_loss`)."""
    # Per-patch normalization with the unbiased variance, as in the released code.
    centered = patches - patches.mean(-1, keepdim=True)
    variance = centered.square().sum(-1, keepdim=True) / max(patches.shape[-1] - 1, 1)
    return centered * torch.rsqrt(variance + NORM_PIX_EPS)
