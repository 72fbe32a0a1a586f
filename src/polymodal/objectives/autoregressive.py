"""Next-token losses of autoregressive (causal) language modeling."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def prediction_positions(
    document: Int[Tensor, "rows length"], predicted: Bool[Tensor, "rows length"]
) -> tuple[Int[Tensor, " asked"], Int[Tensor, " asked"]]:
    """Return row and column of every token to predict from its predecessor; a document's first token never is.

    predicted: True for tokens that the loss covers, such as those of answers in instruction tuning.
    """
    after = predicted[:, 1:] & (document[:, 1:] == document[:, :-1]) & (document[:, 1:] > 0)
    rows, before = after.nonzero().unbind(1)
    return rows, before + 1


def num_predicted(document: Int[Tensor, "rows length"], predicted: Bool[Tensor, "rows length"]) -> Int[Tensor, ""]:
    """Return the number of tokens to predict, as in `prediction_positions`."""
    return (predicted[:, 1:] & (document[:, 1:] == document[:, :-1]) & (document[:, 1:] > 0)).sum()


def next_token_losses(
    logits: Float[Tensor, "asked vocabulary"], tokens: Int[Tensor, " asked"]
) -> Float[Tensor, " asked"]:
    """Return -log p of each token, in nats."""
    return F.cross_entropy(logits.float(), tokens, reduction="none")


def segment_sum(
    values: Float[Tensor, " asked"], sequence: Int[Tensor, " asked"], count: int
) -> Float[Tensor, " sequences"]:
    """Sum values per sequence, such as token log-probabilities. sequence: from 0 to count - 1."""
    return values.new_zeros(count).index_add(0, sequence, values)
