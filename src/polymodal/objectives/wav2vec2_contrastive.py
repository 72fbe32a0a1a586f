"""Which of these was hidden here? The contrast of wav2vec 2.0 within a sequence."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def wav2vec2_contrastive_loss(
    context: Float[Tensor, "masked dim"],
    targets: Float[Tensor, "masked dim"],
    counts: Int[Tensor, " batch"],
    num_negatives: int = 100,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy of each hidden place's own target among those of other hidden places of its sequence.

    Cosine similarities over the temperature; distractors are drawn with replacement (Baevski et al. 2020, equation 3),
    and one that equals the own target does not count. context, targets: of all hidden places, sequence after sequence,
    of which each has so many as `counts` says. The mean over places; 0 for a sequence with a single one, and for none.
    """
    if not len(context):
        return context.sum() * 0.0
    size = counts.repeat_interleave(counts)  # how many its sequence has, for every place
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    own = torch.arange(len(context), device=context.device) - first
    others = (torch.rand(len(context), num_negatives, device=context.device) * (size - 1)[:, None]).long()
    others = (others + (others >= own[:, None])).minimum(size[:, None] - 1)  # never itself, but where it is alone
    drawn = F.normalize(targets, dim=1)[first[:, None] + others]
    query, right = F.normalize(context, dim=1), F.normalize(targets, dim=1)
    positive = torch.linalg.vecdot(query, right)[:, None]
    negative = torch.einsum("nd,nkd->nk", query, drawn)
    same = (drawn == right[:, None]).all(-1)
    logits = torch.cat([positive, negative.masked_fill(same, -torch.inf)], dim=1) / temperature
    return -logits.float().log_softmax(1)[:, 0].mean()
