"""Losses of masked modeling (MLM, masked image modeling) over masked positions only.

Cross-entropy of tokens, codes or categories, squared error of pixels or numbers. All are 0, with zero gradients, where
nothing is masked, and means over the masked positions of all processes (`objectives.reduction`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.table import TableRows
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


def masked_feature_loss(
    prediction: Float[Tensor, "masked values"], features: Float[Tensor, "masked values"]
) -> Float[Tensor, ""]:
    """Return the mean squared error of features of masked regions (MRFR, UNITER, Chen et al. 2020, section 3.2)."""
    return global_mean((prediction - features).square().mean(-1).sum(), len(features))


def masked_table_loss(
    numbers: Float[Tensor, "batch numeric"],
    category_logits: Float[Tensor, "batch categorical values"],
    rows: TableRows,
    offsets: Sequence[int],
    mask: Bool[Tensor, "batch columns"],
) -> Float[Tensor, ""]:
    """Return the loss of masked tabular reconstruction (MTR): half the mean squared error of masked numbers plus half
    the mean cross-entropy of masked categories (TIP, Du et al. 2024, section 3.2).

    category_logits: over the values of all columns together, of which those of column c begin at offsets[c]. rows: the
    original table; masked cells that were missing there do not count. mask: numeric columns first.
    """
    masked_numbers, masked_categories = (mask & ~rows.missing).split([numbers.shape[1], len(offsets)], dim=1)
    squares = (numbers - rows.numbers.nan_to_num(0.0)).square()[masked_numbers]
    codes = rows.categories + torch.tensor(offsets, dtype=torch.long, device=mask.device)
    cross_entropy = masked_cross_entropy(category_logits[masked_categories], codes[masked_categories])
    return (global_mean(squares.sum(), len(squares)) + cross_entropy) / 2


def normalize_patches(patches: Float[Tensor, "*shape values"]) -> Float[Tensor, "*shape values"]:
    """Standardize each patch by its own mean and variance (MAE, section 4.1, `norm_pix_loss`)."""
    mean, std = patch_mean_std(patches)
    return (patches - mean) / std


def patch_mean_std(
    patches: Float[Tensor, "*shape values"],
) -> tuple[Float[Tensor, "*shape 1"], Float[Tensor, "*shape 1"]]:
    """Return the mean and the (unbiased) standard deviation of each patch, which bring predictions back to pixels."""
    mean = patches.mean(-1, keepdim=True)
    variance = (patches - mean).square().sum(-1, keepdim=True) / max(patches.shape[-1] - 1, 1)
    return mean, (variance + NORM_PIX_EPS).sqrt()
