"""The loss of question answering as classification."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.reduction import global_mean


def answer_loss(logits: Float[Tensor, "batch answers"], answer: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the cross-entropy, averaged over questions whose answer is known."""
    is_known = answer != UNKNOWN_ANSWER
    return masked_cross_entropy(logits[is_known], answer[is_known])


def binary_answer_loss(
    logits: Float[Tensor, "*copies batch answers"], answer: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy, summed over all answers, averaged over questions whose answer is known.

    logits: of one or more copies of each question, whose losses are averaged.
    """
    is_known = answer != UNKNOWN_ANSWER
    targets = F.one_hot(answer.clamp(min=0), logits.shape[-1]).to(logits).expand_as(logits)
    errors = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)
    errors = errors.reshape(-1, len(answer)).mean(0)
    return global_mean(errors[is_known].sum(), is_known.sum())
