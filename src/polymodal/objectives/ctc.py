"""Connectionist temporal classification (CTC): character transcripts of speech without an alignment."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.modalities.text import Tokens
from polymodal.objectives.reduction import global_mean


def ctc_loss(
    logits: Float[Tensor, "batch moments classes"], lengths: Int[Tensor, " batch"], text: Tokens
) -> Float[Tensor, ""]:
    """Return the CTC loss, -log p of each text given its speech, per character (Graves et al. 2006).

    text: with special tokens, which are ignored. Class 0, the padding token, is the blank. A text that is too long for
    its speech has loss 0. The mean is over the characters of all processes.
    """
    num_characters = text.lengths - 2
    characters = text.ids[:, 1:][
        torch.arange(text.ids.shape[1] - 1, device=num_characters.device) < num_characters[:, None]
    ]
    log_probs = logits.float().log_softmax(2).transpose(0, 1)
    total = F.ctc_loss(log_probs, characters, lengths, num_characters, blank=0, reduction="sum", zero_infinity=True)
    return global_mean(total, num_characters.sum())


def ctc_greedy_decode(logits: Float[Tensor, "moments classes"]) -> list[int]:
    """Decode greedily: the most probable class of every frame, with repetitions merged and blanks removed."""
    best = torch.unique_consecutive(logits.argmax(1)).tolist()
    return [index for index in best if index]
