"""Self-supervised losses without negatives: stop-gradient prediction, decorrelation, balanced assignment."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather_with_grad


def negative_cosine_similarity(
    prediction: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Return 2 - 2 cos(prediction, sg(target)), in [0, 4] (SimSiam, equation 1; BYOL, equation 2)."""
    return (2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=-1)).mean()


def barlow_twins(
    a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], off_diagonal: float = 5e-3
) -> Float[Tensor, ""]:
    """Return the distance of the cross-correlation matrix of two views from the identity (Barlow Twins, equation 1).

    a, b: standardized over the batch in each dimension (a batch norm at the end of the projection head). The batch is
    that of all processes.
    """
    a, b = all_gather_with_grad(a), all_gather_with_grad(b)
    # C_ij of equation 2: correlation of dimension i of a with dimension j of b.
    correlation = a.T @ b / len(a)
    diagonal = correlation.diagonal()
    return (diagonal - 1).square().sum() + off_diagonal * (correlation.square().sum() - diagonal.square().sum())


def sinkhorn(
    similarity: Float[Tensor, "samples targets"], temperature: float = 0.05, iterations: int = 3
) -> Float[Tensor, "samples targets"]:
    """Return a soft assignment of equal total mass for all targets (SwAV, appendix A); rows sum to 1."""
    log_mass = similarity / temperature
    for _ in range(iterations):
        # Sinkhorn-Knopp in log space: normalize columns (targets), then rows (samples).
        log_mass = log_mass - log_mass.logsumexp(0, keepdim=True)
        log_mass = log_mass - log_mass.logsumexp(1, keepdim=True)
    return log_mass.exp()


def swav_loss(
    logits: Float[Tensor, "samples targets"], assignment: Float[Tensor, "samples targets"]
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the softmax of logits against a soft assignment, which gets no gradient (SwAV)."""
    return -(assignment.detach() * logits.log_softmax(-1)).sum(-1).mean()
