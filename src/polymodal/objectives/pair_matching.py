"""Binary matching of pairs of several kinds by one head with a logit for each kind."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def task_masked_bce(
    logits: Float[Tensor, "batch tasks"], labels: Float[Tensor, " batch"], task_mask: Float[Tensor, "batch tasks"]
) -> Float[Tensor, " tasks"]:
    """Return the binary cross-entropy of each task, as its mean over the whole batch (MQDD, released code).

    labels: 1 for a true pair, 0 for a negative. task_mask: 1 for the task of an example, 0 for others, whose logits
    get no gradient. It is not divided by the number of examples of a task, so that a task weighs as many as it has.
    """
    loss = F.binary_cross_entropy_with_logits(logits, labels[:, None].expand_as(logits), reduction="none")
    return (task_mask * loss).mean(0)
