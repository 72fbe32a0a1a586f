"""Alignment without negatives: stop-gradient prediction, decorrelation, and balanced assignment."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather_with_grad


def negative_cosine_similarity(
    prediction: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """2 - 2 cos(prediction, target), no gradient into the target (SimSiam, equation 1; BYOL, equation 2). In [0, 4]."""
    return (2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=-1)).mean()


def barlow_twins(
    a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], off_diagonal: float = 5e-3
) -> Float[Tensor, ""]:
    """Cross-correlation of two views against the identity (Barlow Twins, equation 1); 0 only when they are equal.

    a, b: each dimension with mean 0 and variance 1 over the batch (a batch norm at the end of the projector). With
    several processes the batch is that of all of them.
    """
    a, b = all_gather_with_grad(a), all_gather_with_grad(b)
    correlation = a.T @ b / len(a)
    diagonal = correlation.diagonal()
    return (diagonal - 1).square().sum() + off_diagonal * (correlation.square().sum() - diagonal.square().sum())


def sinkhorn(
    similarity: Float[Tensor, "samples targets"], temperature: float = 0.05, iterations: int = 3
) -> Float[Tensor, "samples targets"]:
    """A soft assignment that gives every target the same mass (SwAV, appendix A). Each sample's row sums to one."""
    log_mass = similarity / temperature
    for _ in range(iterations):
        log_mass = log_mass - log_mass.logsumexp(0, keepdim=True)
        log_mass = log_mass - log_mass.logsumexp(1, keepdim=True)
    return log_mass.exp()


def swav_loss(
    logits: Float[Tensor, "samples targets"], assignment: Float[Tensor, "samples targets"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the softmax of the logits against a soft assignment, which gets no gradient."""
    return -(assignment.detach() * logits.log_softmax(-1)).sum(-1).mean()
