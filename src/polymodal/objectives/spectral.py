"""Losses and measures of the singular values of a matrix of similarities."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.layers.distributed import all_gather_with_grad

SpectralLoss = Literal["spread", "align"]
EPSILON = 1e-12  # of sums of singular values, for a matrix of zeros


def singular_value_loss(
    a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], kind: SpectralLoss
) -> Float[Tensor, ""]:
    """Return a loss of the largest singular value s_1 of the similarities C = a b^T of the whole batch.

    spread: s_1 / sum_k s_k, the fraction of a dominant shared direction. align: 1 - s_1 / |C|_F, which is 0 for a
    matrix of rank one. Both are in [0, 1] and do not depend on the scale of C; the gradient is not
    defined where s_1 = s_2. C of all processes is held by each of them, and computed at least in float32.
    """
    with torch.autocast(a.device.type, enabled=False):
        dtype = torch.promote_types(a.dtype, torch.float32)
        similarity = all_gather_with_grad(a.to(dtype)) @ all_gather_with_grad(b.to(dtype)).T
        if kind == "spread":
            values = torch.linalg.svdvals(similarity)
            return values[0] / values.sum().clamp(min=EPSILON)
        # d s_1 / dC = u_1 w_1^T; the Frobenius norm needs no decomposition.
        largest = torch.linalg.matrix_norm(similarity, 2)
        return 1 - largest / torch.linalg.matrix_norm(similarity).clamp(min=EPSILON)


def effective_rank(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """Return exp of the entropy of the singular values as fractions of their sum (Roy and Vetterli 2007).

    From 1, for a matrix of rank one, to the smaller side, for equal singular values.
    """
    values = torch.linalg.svdvals(matrix)
    return torch.special.entr(values / values.sum().clamp(min=EPSILON)).sum().exp()
