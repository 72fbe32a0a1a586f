"""Next-token losses of autoregressive (causal) language modeling."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.modalities.text import Tokens


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


def text_token_losses(
    logits: Float[Tensor, "batch length vocabulary"], text: Tokens, label_smoothing: float = 0.0
) -> tuple[Float[Tensor, "batch predicted"], Bool[Tensor, "batch predicted"]]:
    """Return the cross-entropy of every token but the first, and False for padding; the end token counts.

    logits: of the token after each position.
    """
    scores = logits[:, :-1].float().transpose(1, 2)
    nats = F.cross_entropy(scores, text.ids[:, 1:], reduction="none", label_smoothing=label_smoothing)
    return nats, text.mask[:, 1:]


def segment_sum(
    values: Float[Tensor, " asked"], sequence: Int[Tensor, " asked"], count: int
) -> Float[Tensor, " sequences"]:
    """Sum values per sequence, such as token log-probabilities. sequence: from 0 to count - 1."""
    return values.new_zeros(count).index_add(0, sequence, values)
