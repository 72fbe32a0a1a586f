"""Bounds of mutual information (MI) as losses."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def jensen_shannon_loss(a: Float[Tensor, "batch slots dim"], b: Float[Tensor, "batch slots dim"]) -> Float[Tensor, ""]:
    """Return the negative Jensen-Shannon bound of MI between slots of two views (Hjelm et al. 2019, equation 4).

    A positive pair is the same slot (prototype) of both views of an example, a negative pair two different slots of it
    (DGVAE, equation 21). With one slot, there are no negatives.
    """
    similarity = a @ b.transpose(1, 2)
    diagonal = similarity.diagonal(dim1=1, dim2=2)
    positive, count = F.softplus(-diagonal), similarity.shape[1]
    if count == 1:
        return positive.mean()
    negative = (F.softplus(similarity).sum(-1) - F.softplus(diagonal)) / (count - 1)
    return (negative + positive).mean()
