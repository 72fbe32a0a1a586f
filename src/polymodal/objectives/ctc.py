"""Connectionist temporal classification: characters along sounds of which nobody says where each one is spoken."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.modalities.text import Tokens


def ctc_loss(
    logits: Float[Tensor, "batch moments classes"], lengths: Int[Tensor, " batch"], text: Tokens
) -> Float[Tensor, ""]:
    """Minus the log-probability of each text's characters along its speech, per character (Graves et al. 2006).

    text: with marks, which are not said. The class of the first mark, padding, is the blank. A text that is longer than
    its speech allows counts nothing.
    """
    own = text.lengths - 2
    characters = text.ids[:, 1:][torch.arange(text.ids.shape[1] - 1, device=own.device) < own[:, None]]
    likely = logits.float().log_softmax(2).transpose(0, 1)
    total = F.ctc_loss(likely, characters, lengths, own, blank=0, reduction="sum", zero_infinity=True)
    return total / own.sum().clamp(min=1)


def ctc_greedy_decode(logits: Float[Tensor, "moments classes"]) -> list[int]:
    """The likeliest class of every moment, repetitions once, without the blank."""
    best = torch.unique_consecutive(logits.argmax(1)).tolist()
    return [number for number in best if number]
